"""Low-rank updates of weights (LoRA, Hu et al., arXiv:2106.09685).

An updated kernel is kernel + scale * lora_A @ lora_B with lora_A (..., I, rank) and lora_B
(rank, O), both for dense kernels (I, O) and for convolutions (H, W, I, O).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Params

Factors = dict[str, Any]

# The targets of diffusers' train_text_to_image_lora.py and train_dreambooth_lora.py.
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out_0")
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def init_factors(key: jax.Array, params: Params, *, rank: int, targets: Sequence[str]) -> Factors:
  """Makes factors for every module of `params` named in `targets`, nested as in `params`.

  lora_A is normal with standard deviation 1 / rank (PEFT's "gaussian", used by diffusers' scripts),
  lora_B is zero; both are float32.

  Args:
    key: random key; each module draws with its own key, derived from its place.
    params: parameters of one component; arrays or `jax.ShapeDtypeStruct`s.
    rank: rank of every update, at least 1.
    targets: module names.

  Raises:
    ConfigError: a target names no module with a kernel.
  """
  found: set[str] = set()
  index = 0

  def walk(tree: Any) -> Factors:
    nonlocal index
    factors: Factors = {}
    for name in sorted(tree):
      value = tree[name]
      if not isinstance(value, dict):
        continue
      if name in targets and "kernel" in value:
        found.add(name)
        *window, inputs, outputs = value["kernel"].shape
        draw = jax.random.normal(jax.random.fold_in(key, index), (*window, inputs, rank))
        index += 1
        factors[name] = {"lora_A": draw / rank, "lora_B": jnp.zeros((rank, outputs))}
      elif inner := walk(value):
        factors[name] = inner
    return factors

  factors = walk(params)
  if lost := sorted(set(targets) - found):
    raise ConfigError(f"no module with a kernel is called {', '.join(lost)} in this model")
  return factors


def merge_factors(factors: Factors, params: Params, *, scale: float = 1.0) -> Params:
  """Adds scale * lora_A @ lora_B to every kernel of `params` that has factors.

  Updated kernels get the wider of their own dtype and the factors' dtype.

  Args:
    factors: a tree with some branches of `params`, ending in {"lora_A", "lora_B"}.
    params: parameters with the same nesting.
    scale: lora_alpha / rank.
  """
  if is_module(factors):
    a, b = factors["lora_A"], factors["lora_B"]
    kernel = jnp.asarray(params["kernel"])
    wide = jnp.promote_types(kernel.dtype, a.dtype)
    # Full precision: a TPU would round the factors to bfloat16 by default.
    update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return {**params, "kernel": kernel.astype(wide) + scale * update}
  merged = {name: merge_factors(f, params[name], scale=scale) for name, f in factors.items()}
  return {**params, **merged}


def is_module(tree: Any) -> bool:
  """Returns whether a tree of factors belongs to a single module."""
  return "lora_A" in tree
