"""Noise matched to another protection: its perturbation with the pixels in random order.

Each picture keeps exactly the values of the other method's delta, and so its RMS, but loses all
structure. An effect of a protection beyond this control is due to the structure of its delta.
"""

from __future__ import annotations

import jax

from udp_jax.data.batches import Batch
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.protections.base import Protection, fixed_from_reference


def matched_noise(model: DiffusionModel, *, radius: float) -> Protection:
  """The reference's perturbation, its elements permuted within each picture.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale; at least that of the reference.

  >>> import numpy as np
  >>> from udp_jax.data import batches
  >>> from udp_jax.models import toy
  >>> clean = np.full((2, 4, 4, 3), 100, np.uint8)
  >>> theirs = clean + np.arange(2, dtype=np.uint8)[:, None, None, None]
  >>> data = batches.make_batches(clean, 2, reference=theirs)
  >>> method = matched_noise(toy.on_pixels(), radius=8 / 255)
  >>> delta = method.init(jax.random.key(0), data, None).delta
  >>> (255 * delta.mean((0, 2, 3, 4))).round(3).tolist()  # Each picture keeps its own values.
  [0.0, 1.0]
  """
  del model

  def permute(keys: jax.Array, data: Batch, reference_delta: jax.Array) -> jax.Array:
    shape = reference_delta.shape
    flat = reference_delta.reshape(*shape[:2], -1)
    permuted = jax.vmap(jax.vmap(jax.random.permutation))(keys, flat).reshape(shape)
    return projections.box(projections.linf(permuted, radius), to_float(data.images))

  return fixed_from_reference(permute)
