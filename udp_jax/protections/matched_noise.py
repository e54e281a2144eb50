"""Noise matched to another protection: its perturbation with the pixels in random order.

Each channel of a picture keeps exactly the values of the other method's delta, and so its RMS, but
loses its structure. An effect of a protection beyond this control is due to the structure of its
delta. Near black and white not every value fits everywhere, and clipping would take 3 to 6 % of the
RMS: values move only to places where the picture stays within its levels. There the orders that fit
keep some structure, that of the picture: neighbours correlate by 0.24 where half of a picture is
white, and by 0.45 where it is half black, half white.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.protections.base import Protection, fixed_from_reference

# Times that every place is paired with a random other one. In unbounded pictures one would do.
_ROUNDS = 32


def matched_noise(model: DiffusionModel, *, radius: float) -> Protection:
  """The reference's perturbation, its elements permuted within each channel of each picture.

  Places are paired at random, over and over, and two values change places where both fit. Every
  such step can be undone by the same pairing, so this walk favours none of the orders in which all
  values fit; it starts at one of them, the reference's.

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
    del reference_delta  # Levels are exact.
    images, reference = (jnp.asarray(levels) for levels in (data.images, data.reference))
    largest = jnp.full(images.shape, 255, jnp.int32)
    if data.limit is not None:
      largest = jnp.broadcast_to(jnp.asarray(data.limit), images.shape).astype(jnp.int32)
    if data.mask is not None:
      largest = jnp.where(jnp.asarray(data.mask) > 0, largest, 0)
    # One batch at a time: the walk holds several copies of its pictures.
    moved = jax.lax.map(lambda batch: jax.vmap(_moved)(*batch), (keys, images, reference, largest))
    return projections.linf(moved, radius)

  return fixed_from_reference(permute)


def _moved(key: jax.Array, image: jax.Array, reference: jax.Array, largest: jax.Array) -> jax.Array:
  """Returns the delta (H, W, C) of one picture; levels (H, W, C), and |delta| <= `largest`."""
  flat = image.reshape(-1, image.shape[-1])
  levels, theirs, bound = (
    x.reshape(flat.shape).astype(jnp.int32).T for x in (image, reference, largest)
  )
  low, high = jnp.maximum(-bound, -levels), jnp.minimum(bound, 255 - levels)
  keys = jax.random.split(key, flat.shape[1])
  moved = levels + jax.vmap(_walk)(keys, theirs - levels, low, high)
  return (to_float(moved.T.astype(jnp.uint8)) - to_float(flat)).reshape(image.shape)


def _walk(key: jax.Array, values: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
  """Exchanges values (N,) of random pairs of places where both stay within [low, high]."""
  count = values.shape[0]
  half = count // 2

  def step(state: jax.Array, key: jax.Array):
    # Columns are places in the order of the last pairing; only the values in row 0 leave theirs.
    state = state[:, jax.random.permutation(key, count)]
    (a, low_a, high_a, _), (b, low_b, high_b, _) = state[:, :half], state[:, half : 2 * half]
    fits = (low_a <= b) & (b <= high_a) & (low_b <= a) & (a <= high_b)
    mixed = [jnp.where(fits, b, a), jnp.where(fits, a, b), state[0, 2 * half :]]
    return state.at[0].set(jnp.concatenate(mixed)), None

  places = jnp.arange(count, dtype=values.dtype)
  start = jnp.stack([values, low, high, places])
  state, _ = jax.lax.scan(step, start, jax.random.split(key, _ROUNDS))
  values, _, _, places = state
  return jnp.zeros_like(values).at[places].set(values)
