"""Parameters of layers that low-rank updates are for, and updates of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from udp_jax.models import lora


@pytest.fixture(scope="module")
def plain_params() -> dict:
  """Some layers of a U-Net and of a text encoder, as they were before."""
  attention = {
    "to_q": {"kernel": jnp.ones((6, 8))},
    "to_out_0": {"kernel": jnp.ones((8, 6)), "bias": jnp.zeros(6)},
  }
  down = {
    "attentions_0": {"transformer_blocks_0": {"attn1": attention}},
    "resnets_0": {"conv1": {"kernel": jnp.ones((3, 3, 4, 5))}},
  }
  layer = {"self_attn": {"q_proj": {"kernel": jnp.ones((7, 7))}}}
  text = {"text_model": {"encoder": {"layers_0": layer}}}
  return {"unet": {"down_blocks_0": down}, "text_encoder": text}


@pytest.fixture(scope="module")
def factors(plain_params: dict) -> dict:
  """Low-rank updates of `plain_params`, trained: no zeros."""
  made = {
    "unet": lora.init_factors(
      jax.random.key(0), plain_params["unet"], rank=2, targets=("to_q", "to_out_0", "conv1")
    ),
    "text_encoder": lora.init_factors(
      jax.random.key(1), plain_params["text_encoder"], rank=2, targets=("q_proj",)
    ),
  }
  return jax.tree.map(lambda leaf: leaf + 0.3, made)
