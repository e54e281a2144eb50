"""LoRA files and learned tokens, added to a model that is not theirs."""

from __future__ import annotations

import copy

import jax
import numpy as np
import pytest

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import adapters, lora, lora_files, trainable
from udp_jax.models.learned_tokens import save_learned_token


@pytest.fixture
def params(tiny_pipeline):
  return tiny_pipeline.params


def test_loras_add_up(params, tmp_path) -> None:
  factors = lora.init_factors(jax.random.key(0), params["unet"], rank=2, targets=("to_q",))
  factors = {"unet": jax.tree.map(lambda leaf: leaf + 0.5, factors)}
  first, second = (lora_files.save_lora(tmp_path / name, factors) for name in "ab")
  added = adapters.add_loras(params, [str(first), str(second.parent)], scale=0.25)
  # Twice a quarter of the same update.
  expected = lora.merge_factors(factors, params, scale=0.5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, added, expected)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), added, params)
  assert any(jax.tree.leaves(moved["unet"])) and not any(jax.tree.leaves(moved["vae"]))
  assert adapters.add_loras(params, []) is params


def test_tokens_are_read_and_spelled_out(tiny_pipeline, params, tmp_path) -> None:
  tokenizer = copy.deepcopy(tiny_pipeline.tokenizer)
  size, width = trainable.token_table(params).shape
  vectors = np.arange(3 * width, dtype=np.float32).reshape(3, width)
  one = save_learned_token(tmp_path / "one", "<one>", vectors[:1])
  two = save_learned_token(tmp_path / "two", "<two>", vectors[1:])
  known, sizes = adapters.add_tokens(tokenizer, params, [str(one), str(two)])
  assert sizes == {"<one>": 1, "<two>": 2}
  text = adapters.spelled_out("a <two> by <one>", sizes)
  assert text == "a <two> <two>_1 by <one>"
  (ids,) = tokenizer([text])
  new = [int(i) for i in ids if i >= size]
  assert new == [size + 1, size + 2, size]
  np.testing.assert_array_equal(trainable.token_table(known)[np.array(new)], vectors[[1, 2, 0]])
  with pytest.raises(ConfigError, match="one/learned_embeds.safetensors: "):
    adapters.add_tokens(tokenizer, known, [str(one)])


def test_wrong_files(tiny_pipeline, params, tmp_path) -> None:
  tokenizer = copy.deepcopy(tiny_pipeline.tokenizer)
  wide = save_learned_token(tmp_path, "<wide>", np.ones((1, 999), np.float32))
  with pytest.raises(ConfigError, match="<wide> has vectors of 999 values, the model's have"):
    adapters.add_tokens(tokenizer, params, [str(wide)])
  factors = lora.init_factors(jax.random.key(0), params["unet"], rank=1, targets=("to_q",))
  low_rank = lora_files.save_lora(tmp_path, {"unet": factors})
  with pytest.raises(BadDataError, match="a learned token is one"):
    adapters.add_tokens(tokenizer, params, [str(low_rank)])
  with pytest.raises(BadDataError, match="belongs to no module of this model"):
    adapters.add_loras(params, [str(wide)])
  with pytest.raises(MissingDataError, match="no file"):
    adapters.add_loras(params, [str(tmp_path / "nothing.safetensors")])
