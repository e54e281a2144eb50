"""Finds where a perceptual distance stands when LPIPS on VGG16 has a given value.

Pictures change by three kinds of differences, each scaled from nothing up: uniform noise, noise of
one size with random signs, and what PhotoGuard's encoder attack makes against a latent model. Where
LPIPS of a picture first reaches a budget, the other distance is read off. The relation differs from
picture to picture and from kind to kind, so the quartiles belong to the median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax import protections
from udp_jax.data import batches
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.context import Model
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.ops.image import to_float

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
# Largest changes in 8-bit levels.
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
_ATTACK, _ROUNDS, _STEP_255, _RADIUS_255 = "photoguard_encoder", 20, 2.0, 16.0


class Point(NamedTuple):
  """Where a distance stands at a budget of LPIPS: quartiles over pictures, and their number.

  Attributes:
    budget: LPIPS on VGG16.
    kind: kind of difference, or "all".
    low: lower quartile of the distance.
    median: its median.
    high: upper quartile.
    num_pictures: pictures whose LPIPS reaches the budget.
  """

  budget: float
  kind: str
  low: float
  median: float
  high: float
  num_pictures: int


def differences(images: np.ndarray, model: Model, *, seed: int) -> dict[str, np.ndarray]:
  """Returns differences (N, H, W, 3) of every kind, of at most one 8-bit level, float32.

  Args:
    images: (N, H, W, 3) uint8, of the model's size.
    model: a latent model, which the attack is made against.
    seed: decides every draw.

  Raises:
    ConfigError: the model is not latent, or the pictures are not of its size.
  """
  generator = np.random.default_rng(seed)
  uniform = generator.uniform(-1, 1, images.shape)
  options = {"radius": _RADIUS_255 / 255, "step_size": _STEP_255 / 255, "decay_steps": _ROUNDS}
  attack = protections.build(_ATTACK, model.model, options)
  data = batches.make_batches(images, len(images), cond=model.embeddings([""] * len(images)))
  key = jax.random.key(seed)
  made, _ = protections.run(attack, key, data, model.params, num_rounds=_ROUNDS)
  delta = batches.unbatch(np.asarray(made), len(images)) * 255 - images
  found = {"uniform noise": uniform, "sign noise": np.sign(uniform), _ATTACK: delta / _RADIUS_255}
  return {kind: difference.astype(np.float32) for kind, difference in found.items()}


def measure(
  distance: PerceptualDistance,
  images: np.ndarray,
  differences: Mapping[str, np.ndarray],
  *,
  mesh: Mesh,
) -> dict[str, np.ndarray]:
  """Returns the distances (S, N) of uint8 pictures from themselves changed by all `STRENGTHS`.

  Args:
    distance: what is measured.
    images: (N, H, W, 3) uint8.
    differences: by kind, as of `differences`.
    mesh: devices to run on.
  """

  @jax.jit
  def apply(params: Any, images: jax.Array, changed: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
      return distance.apply(params, to_float(images), changed / 255)

  function = partial(apply, distance.params)
  found = {}
  for kind, difference in differences.items():
    changed = (np.clip(images + strength * difference, 0, 255) for strength in STRENGTHS)
    values = [
      over_pictures(function, images, c, per_device_batch_size=8, mesh=mesh) for c in changed
    ]
    found[kind] = np.stack(values)
  return found


def read_off(lpips: np.ndarray, own: np.ndarray, budget: float) -> np.ndarray:
  """Returns `own` where LPIPS first reaches the budget, linear between strengths.

  Args:
    lpips: (S, N), LPIPS at rising strengths.
    own: (S, N), the other distance.
    budget: a value of LPIPS.

  Returns:
    (M,), for the pictures whose LPIPS reaches the budget.

  >>> read_off(np.array([[0.1], [0.3]]), np.array([[0.2], [0.4]]), 0.2).tolist()
  [0.30000000000000004]
  """
  zero = np.zeros((1, lpips.shape[1]))
  lpips, own = np.concatenate([zero, lpips]), np.concatenate([zero, own])
  reached = np.flatnonzero((lpips >= budget).any(axis=0))
  after = (lpips[:, reached] >= budget).argmax(axis=0)
  (low, high), (start, end) = ((v[after - 1, reached], v[after, reached]) for v in (lpips, own))
  return start + (end - start) * (budget - low) / (high - low)


def calibrate(
  lpips: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], budgets: Sequence[float] = BUDGETS
) -> list[Point]:
  """Returns a point for every budget and kind, and for all kinds together.

  Args:
    lpips: LPIPS (S, N) by kind.
    own: the other distance (S, N) by kind.
    budgets: values of LPIPS.
  """
  points = []
  for budget in budgets:
    found = {kind: read_off(lpips[kind], own[kind], budget) for kind in lpips}
    for kind, values in {**found, "all": np.concatenate(list(found.values()))}.items():
      low, median, high = (
        np.quantile(values, (0.25, 0.5, 0.75)).tolist() if len(values) else (np.nan,) * 3
      )
      points.append(Point(budget, kind, low, median, high, len(values)))
  return points
