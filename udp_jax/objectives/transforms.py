"""Differentiable transforms that an infringer may apply to pictures."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, Params
from udp_jax.objectives.base import Objective, Transform, averaged
from udp_jax.ops import image, jpeg
from udp_jax.ops.keys import normal_each, split_each, stream

QUALITIES = (50.0, 95.0)
SCALES = (0.5, 0.625, 0.75, 0.875)
BLURS = (0.3, 1.5)
NOISES = (0.0, 0.1)
# MetaCloak's blur: torchvision's default standard deviations, 7 taps.
WIDE_BLURS = (0.1, 2.0)
_WIDE_REACH = 3


def over_transforms(
  objective: Objective, transforms: Sequence[Transform], num_draws: int = 1
) -> Objective:
  """The expectation of `objective` over random transforms of the pictures (EOT).

  Athalye et al. 2018 (arXiv:1707.07397). Each draw picks one transform for each picture, all
  equally likely. With one draw `objective` gets the given keys unchanged, so the identity alone
  changes nothing; several draws are computed one after the other, in the memory of one.

  Args:
    objective: the objective for the transformed pictures.
    transforms: (keys (B,), images) -> images, differentiable, each picture by its own key.
    num_draws: number of draws that losses are averaged over; aux is that of the last draw.

  >>> brightness = lambda params, images, cond, keys: (images.mean((1, 2, 3)), {})
  >>> dark = lambda keys, images: 0.0 * images
  >>> expected = over_transforms(brightness, [dark], num_draws=2)
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> expected(None, jnp.ones((2, 4, 4, 3)), None, keys)[0].tolist()
  [0.0, 0.0]
  """

  def drawn(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_choice, key_draw = split_each(jax.vmap(lambda key: stream(key, "transforms"))(keys), 2)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(transforms)))(key_choice)
    moved = transforms[0](key_draw, images)
    for number, transform in enumerate(transforms[1:], 1):
      chosen = (choice == number)[:, None, None, None]
      moved = jnp.where(chosen, transform(key_draw, images), moved)
    return objective(params, moved, cond, keys)

  return averaged(drawn, num_draws)


def parse(names: str) -> tuple[Transform, ...]:
  """Returns the transforms with these comma-separated names.

  Raises:
    ConfigError: a name is unknown, or there are none.

  >>> [transform.__name__ for transform in parse("jpeg, blur")]
  ['_jpeg', '_blur']
  """
  given = [name.strip() for name in names.split(",")]
  for name in given:
    if name not in TRANSFORMS:
      raise ConfigError(f"unknown transform {name!r}; known: {', '.join(TRANSFORMS)}")
  return tuple(TRANSFORMS[name] for name in given)


def _uniform(keys: jax.Array, bounds: tuple[float, float]) -> jax.Array:
  """(B,) draws in the interval."""
  low, high = bounds
  return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def _identity(keys: jax.Array, images: jax.Array) -> jax.Array:
  del keys  # Nothing to draw.
  return images


def _jpeg(keys: jax.Array, images: jax.Array) -> jax.Array:
  return jpeg.jpeg(images, _uniform(keys, QUALITIES))


def _resize(keys: jax.Array, images: jax.Array) -> jax.Array:
  # Resizing is linear along each axis, so each scale has a matrix, picked for each picture.
  def round_trips(size: int) -> jax.Array:
    unit = jnp.eye(size)[None, :, :, None]

    def matrix(scale: float) -> jax.Array:
      small = image.resize(unit, (max(1, round(scale * size)), size), method="cubic")
      return image.resize(small, (size, size), method="cubic")[0, :, :, 0]

    return jnp.stack([matrix(scale) for scale in SCALES])

  chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(SCALES)))(keys)
  rows, columns = (round_trips(size)[chosen] for size in images.shape[1:3])
  exact = jax.lax.Precision.HIGHEST
  moved = jnp.einsum("bij,bjkc->bikc", rows, images, precision=exact)
  moved = jnp.einsum("bkl,bilc->bikc", columns, moved, precision=exact)
  return jnp.clip(moved, 0.0, 1.0)


def _blur(keys: jax.Array, images: jax.Array) -> jax.Array:
  return _blurred(images, _uniform(keys, BLURS), 5)


def _blurred(images: jax.Array, sigmas: jax.Array, reach: int) -> jax.Array:
  # So many taps to each side, as far as the picture can be mirrored.
  reach = min(reach, min(images.shape[1:3]) - 1)

  def one(picture: jax.Array, sigma: jax.Array) -> jax.Array:
    return image.gaussian_blur(picture[None], sigma, kernel_size=2 * reach + 1)[0]

  return jax.vmap(one)(images, sigmas)


def _blur_and_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
  key_blur, key_flip = split_each(keys, 2)
  blurred = _blurred(images, _uniform(key_blur, WIDE_BLURS), _WIDE_REACH)
  mirror = jax.vmap(jax.random.bernoulli)(key_flip)[:, None, None, None]
  return jnp.where(mirror, blurred[:, :, ::-1], blurred)


def _noise(keys: jax.Array, images: jax.Array) -> jax.Array:
  key_level, key_noise = split_each(keys, 2)
  level = _uniform(key_level, NOISES)[:, None, None, None]
  return jnp.clip(images + level * normal_each(key_noise, images.shape[1:]), 0.0, 1.0)


TRANSFORMS: dict[str, Transform] = {
  "identity": _identity,
  "jpeg": _jpeg,
  "resize": _resize,
  "blur": _blur,
  "blur_and_flip": _blur_and_flip,
  "noise": _noise,
}
