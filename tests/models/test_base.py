"""Prompts through a model's text encoder."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models.base import embed_prompts

IDS = np.array([[5, 1], [2, 2], [5, 1], [3, 9], [0, 4], [2, 2]], np.int32)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_prompt_gets_its_own_embedding(batch_size: int, gaussian_model) -> None:
  shapes = set()

  def embed(params, ids):
    shapes.add(ids.shape)
    return params * ids[..., None] + np.arange(3.0)

  found = embed_prompts(gaussian_model._replace(embed=embed), 10.0, IDS, batch_size=batch_size)
  np.testing.assert_array_equal(found, 10.0 * IDS[..., None] + np.arange(3.0))
  # Four prompts differ; one shape is compiled, whatever is left for the last batch.
  assert shapes == {(min(batch_size, 4), 2)}


def test_a_model_without_text(gaussian_model) -> None:
  with pytest.raises(ConfigError, match="no text encoder"):
    embed_prompts(gaussian_model, {}, IDS)
