"""Protections that expect purifiers: two options that all methods share.

transforms           names, comma-separated: the objective becomes its expectation over random ones
                     of them (`objectives.over_transforms`), drawn anew for every picture and step
consistency_weight   adds so much of `objectives_latent.consistency`: the protected picture is one
                     that the VAE gives back unchanged, so that IMPRESS finds nothing to mend

| name | draw of a picture |
|---|---|
| `identity` | nothing: the picture as it is, which is worth being among the others |
| `jpeg` | quality uniform in [50, 95], chroma halved |
| `resize` | to 1/2, 5/8, 3/4 or 7/8 of its size and back, cubic |
| `blur` | Gaussian, standard deviation uniform in [0.3, 1.5] pixels |
| `noise` | Gaussian, standard deviation uniform in [0, 0.1] on the [0, 1] scale |

The ranges are ours: they surround what purifiers in use do (JPEG at 75, noise of 0.05 to 0.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax import objectives, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import Objective, Transform
from udp_jax.ops import image, jpeg
from udp_jax.randomness import normal_each, split_each

QUALITIES = (50.0, 95.0)
SCALES = (0.5, 0.625, 0.75, 0.875)
BLURS = (0.3, 1.5)
NOISES = (0.0, 0.1)


def adapted(
  model: DiffusionModel,
  objective: Objective,
  *,
  transforms: str = "",
  consistency_weight: float = 0.0,
  num_draws: int = 1,
) -> Objective:
  """`objective`, minimised by delta, in its adaptive form; itself where neither option is given.

  Args:
    model: whose autoencoder shall give the pictures back.
    objective: what the method descends.
    transforms: names of this module's table, comma-separated; "" for none.
    consistency_weight: of the consistency term, beside the objective's own scale; 0 for none.
    num_draws: of transforms and all else that `objective` draws, averaged; one after the other.

  Raises:
    ConfigError: an unknown transform, a negative weight, or a weight with a pixel model.
  """
  if consistency_weight < 0:
    raise ConfigError(f"consistency_weight must not be negative, got {consistency_weight}")
  if transforms:
    objective = objectives.over_transforms(objective, parse(transforms), num_draws)
  else:
    objective = objectives.averaged(objective, num_draws)
  if consistency_weight:
    term = objectives_latent.consistency(model)
    objective = objectives.weighted((1.0, objective), (consistency_weight, term))
  return objective


def parse(names: str) -> tuple[Transform, ...]:
  """The transforms of comma-separated names.

  Raises:
    ConfigError: an unknown name, or none.
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
  # Shrinking and enlarging are linear along each axis: a matrix for each scale, picked per picture.
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
  # Three deviations to each side, as far as the picture can be mirrored.
  reach = min(5, min(images.shape[1:3]) - 1)

  def one(picture: jax.Array, sigma: jax.Array) -> jax.Array:
    return image.gaussian_blur(picture[None], sigma, kernel_size=2 * reach + 1)[0]

  return jax.vmap(one)(images, _uniform(keys, BLURS))


def _noise(keys: jax.Array, images: jax.Array) -> jax.Array:
  key_level, key_noise = split_each(keys, 2)
  level = _uniform(key_level, NOISES)[:, None, None, None]
  return jnp.clip(images + level * normal_each(key_noise, images.shape[1:]), 0.0, 1.0)


TRANSFORMS: dict[str, Transform] = {
  "identity": _identity,
  "jpeg": _jpeg,
  "resize": _resize,
  "blur": _blur,
  "noise": _noise,
}
