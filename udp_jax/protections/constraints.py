"""Budgets of perturbations: a start and a projection for each picture.

Units: `delta` and `radius` are on the [0, 1] scale of the pictures; 16 levels of 255 are 16 / 255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError, DivergedError
from udp_jax.ops import projections
from udp_jax.ops.image import quantise_within
from udp_jax.protections.options import Spectrum
from udp_jax.protections.spectrum import Band, band_of

STARTS = ("zero", "uniform", "sign")


class Constraint(NamedTuple):
  """A set of allowed perturbations.

  Attributes:
    init: (keys (B,), images (B, H, W, C)) -> a delta in the set, drawn without regard to `band`.
    project: (delta, images) -> the nearest delta in the budget with images + delta in [0, 1].
    band: how delta is made of the variable that is optimised; None if it is that variable.
  """

  init: Callable[[jax.Array, jax.Array], jax.Array]
  project: Callable[[jax.Array, jax.Array], jax.Array]
  band: Band | None = None


def _start(
  name: str, radius: float, ball: Callable, sign: Callable
) -> Callable[[jax.Array, tuple], jax.Array]:
  if name not in STARTS:
    raise ConfigError(f"unknown start of delta {name!r}; known: {', '.join(STARTS)}")
  if not radius > 0:
    raise ConfigError(f"the radius of a budget must be positive, not {radius}")
  if name == "zero":
    return lambda keys, shape: jnp.zeros((keys.shape[0], *shape))
  draw = ball if name == "uniform" else sign
  return lambda keys, shape: jax.vmap(lambda key: draw(key, (1, *shape))[0])(keys)


def linf(radius: float, *, start: str = "zero", spectrum: Spectrum = Spectrum()) -> Constraint:
  """|delta| <= radius at every pixel.

  Args:
    radius: largest |delta|, on the [0, 1] scale.
    start: "zero", "uniform" (in the ball) or "sign" (every pixel at +-radius).
    spectrum: the band of frequencies of delta.

  Raises:
    ConfigError: the start is unknown, the radius is not positive, or the band cannot be used.

  >>> keys, images = jax.random.split(jax.random.key(0), 1), jnp.full((1, 4, 4, 3), 0.5)
  >>> budget = linf(0.1, start="sign")
  >>> round(float(abs(budget.init(keys, images)).min()), 3)
  0.1
  >>> round(float(budget.project(jnp.full(images.shape, 0.7), images).max()), 3)
  0.1
  """
  draw = _start(
    start,
    radius,
    lambda key, shape: projections.random_linf(key, shape, radius),
    lambda key, shape: projections.random_sign(key, shape, radius),
  )

  def project(delta: jax.Array, images: jax.Array) -> jax.Array:
    return projections.box(projections.linf(delta, radius), images)

  def init(keys: jax.Array, images: jax.Array) -> jax.Array:
    return project(draw(keys, images.shape[1:]), images)

  return Constraint(init, project, band_of(spectrum, radius))


def intersection(first: Constraint, second: Constraint) -> Constraint:
  """Both budgets: starts in `first` and is projected onto `second`, in the band of `second`.

  This works for balls around zero, such as those here: projecting onto the second only shrinks
  entries, so the result stays in the first.

  >>> keys, images = jax.random.split(jax.random.key(0), 1), jnp.full((1, 4, 4, 3), 0.5)
  >>> both = intersection(l2(0.5), linf(0.05))
  >>> round(float(abs(both.project(jnp.full(images.shape, 0.3), images)).max()), 3)
  0.05
  """

  def init(keys: jax.Array, images: jax.Array) -> jax.Array:
    return second.project(first.init(keys, images), images)

  def project(delta: jax.Array, images: jax.Array) -> jax.Array:
    return second.project(first.project(delta, images), images)

  return Constraint(init, project, second.band)


def l2(radius: float, *, start: str = "zero") -> Constraint:
  """||delta||_2 <= radius for each picture, the norm over all its pixels on the [0, 1] scale.

  Raises:
    ConfigError: the start is unknown, or the radius is not positive.

  >>> keys, images = jax.random.split(jax.random.key(0), 1), jnp.full((1, 4, 4, 3), 0.5)
  >>> budget = l2(0.5)
  >>> delta = budget.project(jnp.full(images.shape, 0.3), images)
  >>> round(float(jnp.linalg.norm(delta)), 3)
  0.5
  """

  def sign(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return projections.l2(projections.random_sign(key, shape, radius), radius)

  draw = _start(start, radius, lambda key, shape: projections.random_l2(key, shape, radius), sign)

  def project(delta: jax.Array, images: jax.Array) -> jax.Array:
    # The box only shrinks entries (delta = 0 is inside it), so the norm stays within the budget.
    return projections.box(projections.l2(delta, radius), images)

  return Constraint(lambda keys, images: project(draw(keys, images.shape[1:]), images), project)


def saved(clean: np.ndarray, delta: np.ndarray, radius_255: float | np.ndarray) -> np.ndarray:
  """Returns the 8-bit pictures to save; `ops.image.quantise_within` alone would let a NaN pass.

  Args:
    clean: uint8 (N, H, W, C).
    delta: (N, H, W, C) float32 on the [0, 1] scale.
    radius_255: budget in 8-bit levels: a number, or an array that broadcasts with `clean`.

  Returns:
    uint8 (N, H, W, C), at most `radius_255` levels from `clean`.

  Raises:
    DivergedError: a value of delta is NaN or infinite.

  >>> clean = np.array([[[[250, 128, 0]]]], np.uint8)
  >>> saved(clean, np.full(clean.shape, 0.1, np.float32), 16).ravel().tolist()
  [255, 144, 16]
  """
  check_finite(delta)
  return np.asarray(quantise_within(clean, jnp.asarray(delta), radius_255))


def check_finite(delta: np.ndarray, name: str = "delta") -> None:
  """Raises DivergedError, which names `name`, if a value of delta is NaN or infinite.

  >>> check_finite(np.array([0.1, np.nan]), "eudp")
  Traceback (most recent call last):
  udp_jax.errors.DivergedError: eudp: the perturbation is not finite; nothing of it is saved
  """
  if not np.isfinite(delta).all():
    raise DivergedError(f"{name}: the perturbation is not finite; nothing of it is saved")
