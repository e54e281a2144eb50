"""Noise matched to another protection: its own perturbation with the pixels in random order.

Each picture keeps exactly the values of the other method's delta, and so its RMS, and loses every
structure. What a protection does beyond this control, it does by its structure.
"""

from __future__ import annotations

import jax

from udp_jax.models.base import DiffusionModel
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.protections.base import Protection, fixed_from_reference
from udp_jax.training import Batch


def matched_noise(model: DiffusionModel, *, radius: float) -> Protection:
  """The reference's perturbation, its elements permuted within each picture.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale; the reference's own, or larger.
  """
  del model

  def permute(keys: jax.Array, data: Batch, reference_delta: jax.Array) -> jax.Array:
    shape = reference_delta.shape
    flat = reference_delta.reshape(*shape[:2], -1)
    permuted = jax.vmap(jax.vmap(jax.random.permutation))(keys, flat).reshape(shape)
    return projections.box(projections.linf(permuted, radius), to_float(data.images))

  return fixed_from_reference(permute)
