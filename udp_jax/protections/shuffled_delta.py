"""Shuffled delta: each picture gets the perturbation of another picture.

It separates the effect of a perturbation's structure from its effect on its own picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.protections.base import Protection, fixed_from_reference


def shuffled_delta(model: DiffusionModel, *, radius: float) -> Protection:
  """The reference's perturbations, shifted by half the data set.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale; at least that of the reference.

  >>> import numpy as np
  >>> from udp_jax.data import batches
  >>> from udp_jax.models import toy
  >>> clean = np.full((2, 4, 4, 3), 100, np.uint8)
  >>> theirs = clean + np.arange(2, dtype=np.uint8)[:, None, None, None]
  >>> data = batches.make_batches(clean, 2, reference=theirs)
  >>> method = shuffled_delta(toy.on_pixels(), radius=8 / 255)
  >>> delta = method.init(jax.random.key(0), data, None).delta
  >>> (255 * delta.mean((0, 2, 3, 4))).round(3).tolist()  # Each picture has the other's.
  [1.0, 0.0]
  """
  del model

  def shuffle(keys: jax.Array, data: Batch, reference_delta: jax.Array) -> jax.Array:
    del keys  # A fixed shift, so no picture keeps its own perturbation.
    shape = reference_delta.shape
    flat = reference_delta.reshape(-1, *shape[2:])
    moved = jnp.roll(flat, max(1, flat.shape[0] // 2), axis=0).reshape(shape)
    return projections.box(projections.linf(moved, radius), to_float(data.images))

  return fixed_from_reference(shuffle)
