"""Shuffled delta: every picture gets the perturbation that another picture was given.

It tells what a perturbation does by its structure alone from what it does to its own picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.protections.base import Protection, fixed_from_reference
from udp_jax.training import Batch


def shuffled_delta(model: DiffusionModel, *, radius: float) -> Protection:
  """The reference's perturbations, moved on by half the data set.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale; the reference's own, or larger.
  """
  del model

  def shuffle(keys: jax.Array, data: Batch, reference_delta: jax.Array) -> jax.Array:
    del keys  # A fixed shift: nobody keeps their own.
    shape = reference_delta.shape
    flat = reference_delta.reshape(-1, *shape[2:])
    moved = jnp.roll(flat, max(1, flat.shape[0] // 2), axis=0).reshape(shape)
    return projections.box(projections.linf(moved, radius), to_float(data.images))

  return fixed_from_reference(shuffle)
