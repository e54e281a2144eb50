"""Files of learned tokens: written, read, and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError
from udp_jax.models import learned_tokens
from udp_jax.models.tokenizer import spelled


def test_learned_tokens(tmp_path: Path) -> None:
  for count in (1, 3):
    vectors = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    path = learned_tokens.save_learned_token(tmp_path, "<mine>", vectors)
    assert path.name == "learned_embeds.safetensors"
    (stored,) = safetensors.numpy.load_file(path).values()
    assert stored.shape == ((5,) if count == 1 else (3, 5))
    token, read = learned_tokens.load_learned_token(tmp_path)
    assert token == "<mine>"
    np.testing.assert_array_equal(read, vectors)
  assert spelled("<a>", 3) == ["<a>", "<a>_1", "<a>_2"]
  safetensors.numpy.save_file({"<a>": np.zeros(2), "<b>": np.zeros(2)}, path)
  with pytest.raises(BadDataError, match="holds 2 tensors"):
    learned_tokens.load_learned_token(path)
  safetensors.numpy.save_file({"<a>": np.zeros((1, 2, 3))}, path)
  with pytest.raises(BadDataError, match=r"\(1, 2, 3\)"):
    learned_tokens.load_learned_token(path)
