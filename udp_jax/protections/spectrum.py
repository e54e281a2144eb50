"""Perturbations that live in a band of frequencies: `Spectrum`, an option of all methods.

A blur removes most of what methods that raise the denoising loss do to edits
(experiments/results/survival.md): their perturbations are rough. With a band, a method optimises a
variable p, and delta is B(p), clipped to the budget and to [0, 1]: B is linear and its own adjoint
(`ops.bands`).

"gaussian"  blurred with a standard deviation of `band_sigma` pixels of the model's picture
"dct"       the cosines from `band_low` to `band_high`, as shares of the highest frequency
"pyramid"   a sum of levels, each with a variable of its own: level k is blurred with
            `band_sigma` * 2^k pixels and clipped to its share of the radius

Steps. A step of p is scaled, for each picture and level, so that it moves B(p) by as much as it
would have moved delta without a band, in the mean of absolute values: `step_size` for a sign step.
A start is drawn as without a band, and B of it scaled likewise. Scaling belongs to the picture, so
that its perturbation depends neither on its batch nor on sharding.

Gradients. The gradient at delta is pulled back by B. Where delta is at a bound and the step leads
beyond it, there is nothing to follow: such pixels count as 0, others wholly, also those that are
clipped and whose step leads back. |p| is at most `band_reach` radii, so that p can return.

Tiles of larger pictures blend over at least the width of the band (`blending`), so that no edge of
theirs is sharper than it.

What leaves the band: clipping at the budget, at black, white and the edge of a mask, and rounding
to 8 bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.ops import bands
from udp_jax.protections.options import Spectrum

# The fields of `Spectrum` that each band uses.
FIELDS = {
  "gaussian": ("band_sigma", "band_reach"),
  "dct": ("band_low", "band_high", "band_reach"),
  "pyramid": ("band_sigma", "band_shares", "band_reach"),
}
# Excess over a bound that is no rounding, on the [0, 1] scale: far below a level.
_BEYOND = 1e-5

# One array (B, H, W, C) for each level.
Variable = tuple[jax.Array, ...]


class Level(NamedTuple):
  """A part of a band.

  Attributes:
    operator: (B, H, W, C) -> the same shape, linear and its own adjoint.
    share: largest part of the budget that it uses, in (0, 1].
  """

  operator: Callable[[jax.Array], jax.Array]
  share: float


class Band(NamedTuple):
  """How delta is made of the variable that is optimised.

  Attributes:
    levels: the parts that are summed.
    radius: L-inf budget on the [0, 1] scale.
    reach: largest |p| of a level, in its share of the radius.
  """

  levels: tuple[Level, ...]
  radius: float
  reach: float

  def start(self, drawn: jax.Array) -> Variable:
    """Returns the variable whose delta is nearest to a draw in kind: in the band, as strong."""
    # Blurred first: a rough variable would have to be large.
    return self._within(
      [self._scaled(level, level.operator(drawn), drawn) for level in self.levels]
    )

  def made(self, variable: Variable) -> jax.Array:
    """Returns delta (B, H, W, C) before the projection onto budget and box."""
    return _sum(self._parts(variable))

  def pulled(self, gradient: jax.Array, variable: Variable, held: jax.Array) -> Variable:
    """Returns the gradient with respect to the variable, of a loss that is to fall.

    Args:
      gradient: (B, H, W, C), at delta.
      variable: what delta is made of.
      held: `made(variable)` within the bounds of single pixels: box, limits and mask.
    """
    parts = self._parts(variable)
    beyond = _sum(parts) - held
    pulled = []
    for level, part, own in zip(self.levels, parts, variable, strict=True):
      excess = beyond + level.operator(own) - part
      pinned = excess * jnp.sign(gradient) < -_BEYOND  # False for NaN, which passes.
      pulled.append(level.operator(jnp.where(pinned, 0.0, gradient)))
    return tuple(pulled)

  def moved(self, variable: Variable, moves: Variable) -> Variable:
    """Returns the variable after an optimiser's move, scaled by what it does to delta."""
    scaled = [self._scaled(level, move, move) for level, move in zip(self.levels, moves)]
    return self._within([own + move for own, move in zip(variable, scaled, strict=True)])

  def _parts(self, variable: Variable) -> list[jax.Array]:
    """What each level adds to delta."""
    bounds = [level.share * self.radius for level in self.levels]
    made = [level.operator(own) for level, own in zip(self.levels, variable, strict=True)]
    return [jnp.clip(part, -bound, bound) for part, bound in zip(made, bounds)]

  def _within(self, variable: list[jax.Array]) -> Variable:
    bounds = [level.share * self.reach * self.radius for level in self.levels]
    return tuple(jnp.clip(own, -bound, bound) for own, bound in zip(variable, bounds))

  @staticmethod
  def _scaled(level: Level, move: jax.Array, like: jax.Array) -> jax.Array:
    """Scales `move`, so that the level's B of it is its share as strong as `like`."""
    seen, wanted = (jnp.abs(x).mean((1, 2, 3), keepdims=True) for x in (level.operator(move), like))
    return move * (level.share * wanted / jnp.where(seen == 0.0, 1.0, seen))


def _sum(parts: list[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, parts)


def band_of(spectrum: Spectrum, radius: float) -> Band | None:
  """Builds the band of a budget from its options; None without a band.

  Args:
    spectrum: the kind of band and its edges.
    radius: L-inf budget on the [0, 1] scale.

  Raises:
    ConfigError: the band is unknown, a field that it does not use is set, or a number cannot be
      used.

  >>> band_of(Spectrum(), 8 / 255) is None
  True
  >>> band = band_of(Spectrum("gaussian", band_sigma=2.0), 0.1)
  >>> (spot,) = band.start(jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(0.1))
  >>> round(float(band.made((spot,)).max() / spot.max()), 1)  # Its blur is half as high.
  0.5
  """
  kind = spectrum.band
  if kind and kind not in FIELDS:
    raise ConfigError(f"unknown band {kind!r}; known: {', '.join(FIELDS)}")
  used = FIELDS.get(kind, ())
  for field in dataclasses.fields(Spectrum)[1:]:
    if field.name not in used and getattr(spectrum, field.name) != field.default:
      what = f"the band {kind!r} takes {', '.join(used)}" if kind else "there is no band without it"
      raise ConfigError(f"{field.name} is set, but band is {kind!r}: {what}")
  if not kind:
    return None
  if not spectrum.band_reach >= 1:
    raise ConfigError(f"band_reach is {spectrum.band_reach}: it must be 1 or more radii")
  if kind == "dct":
    low, high = spectrum.band_low, spectrum.band_high
    if not 0 <= low < high:
      raise ConfigError(f"band_low is {low} and band_high {high}: need 0 <= band_low < band_high")
    whole = Level(partial(bands.dct_band, low=low, high=high), 1.0)
    return Band((whole,), radius, spectrum.band_reach)
  if not spectrum.band_sigma > 0:
    raise ConfigError(f"band_sigma is {spectrum.band_sigma}: it must be positive")
  shares = (1.0,) if kind == "gaussian" else _shares(spectrum.band_shares)
  levels = tuple(
    Level(partial(bands.gaussian_band, sigma=spectrum.band_sigma * 2.0**number), share)
    for number, share in enumerate(shares)
  )
  return Band(levels, radius, spectrum.band_reach)


def blending(spectrum: Spectrum) -> int:
  """Returns the fewest pixels over which tiles blend without edges that are sharper than the band.

  For a pyramid, its finest level decides.

  Raises:
    ConfigError: as `band_of`.

  >>> blending(Spectrum("gaussian", band_sigma=3.0)), blending(Spectrum())
  (6, 0)
  """
  if band_of(spectrum, 1.0) is None:
    return 0
  finest = 1.0 / spectrum.band_high if spectrum.band == "dct" else 2.0 * spectrum.band_sigma
  return math.ceil(finest)


def _shares(given: str) -> tuple[float, ...]:
  """Parses `band_shares`: positive numbers whose sum is at most 1."""
  try:
    shares = tuple(float(part) for part in given.split(","))
  except ValueError:
    shares = ()
  if not shares or not all(share > 0 for share in shares) or sum(shares) > 1 + 1e-6:
    raise ConfigError(
      f"band_shares is {given!r}: give each level's share of the budget, finest first, such as "
      "'0.5,0.25,0.25'; positive, and together at most 1"
    )
  return shares
