"""A model of a few layers under Stable Diffusion's names, and which of its parts theta changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS, WIDTH = 7, 4


def params() -> dict[str, Any]:
  """Attention and a convolution of a U-Net, a text encoder's projection, tokens, and a VAE."""
  generator = np.random.default_rng(0)

  def kernel(*shape: int) -> dict[str, jax.Array]:
    return {"kernel": jnp.asarray(generator.normal(size=shape), jnp.float32)}

  attention = {name: kernel(WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out_0")}
  projections = {name: kernel(WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
  tokens = {"embedding": jnp.asarray(generator.normal(size=(WORDS, WIDTH)), jnp.float32)}
  text = {
    "embeddings": {"token_embedding": tokens},
    "encoder": {"layers_0": {"self_attn": projections}},
  }
  return {
    "unet": {"block": {"attn2": attention, "conv": kernel(3, 3, 2, 2)}},
    "text_encoder": {"text_model": text},
    "vae": {"conv": kernel(3, 3, 3, 2)},
  }


def text_model(gaussian_model: Any) -> Any:
  """A model of whose functions nothing is called: only its parameters are looked at."""
  return gaussian_model._replace(init=lambda key: params(), embed=lambda params, ids: ids)


def changed(threat: Any, base: dict[str, Any]) -> set[str]:
  """Paths of the parameters that theta reaches: each leaf of theta is moved."""
  theta = threat.init(jax.random.key(0), base).params
  moved = jax.tree.map(lambda leaf: leaf + 1.0, theta)
  merged = threat.trainable.merge(moved, base)
  before = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(base)}
  after = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(merged)}
  paths = {path for path in after if before.get(path) is None or not same(before, after, path)}
  return {path.replace("']['", "/").strip("[']") for path in paths}


def same(before: dict[str, Any], after: dict[str, Any], path: str) -> bool:
  """Whether a leaf is the same in both."""
  one, other = before[path], after[path]
  return one.shape == other.shape and bool(np.array_equal(one, other))
