"""Calibration: closed forms of distances whose relation is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.runtime import mesh
from udp_jax.studies import calibration


def mean_square(params, x, y):
  return params * jnp.square(x - y).mean((1, 2, 3))


SQUARES = PerceptualDistance("squares", "Squares", jnp.float32(1.0), mean_square, 1, "")
ROOTS = SQUARES._replace(apply=lambda params, x, y: jnp.sqrt(mean_square(params, x, y)))


def test_one_distance_is_a_function_of_the_other():
  images = np.full((3, 8, 8, 3), 128, np.uint8)
  signs = np.sign(np.random.default_rng(0).normal(size=images.shape)).astype(np.float32)
  kinds = {"signs": signs, "half": signs / 2}
  squares, roots = (
    calibration.measure(distance, images, kinds, mesh=mesh.make_mesh())
    for distance in (SQUARES, ROOTS)
  )
  assert squares["signs"].shape == (len(calibration.STRENGTHS), 3)
  levels = np.array(calibration.STRENGTHS)[:, None] / 255
  np.testing.assert_allclose(roots["signs"], np.broadcast_to(levels, (10, 3)), rtol=1e-4)
  np.testing.assert_allclose(squares["half"], np.broadcast_to(levels**2 / 4, (10, 3)), rtol=1e-3)
  # At a strength of the grid the relation is exact; the largest is not reached by halves.
  points = calibration.calibrate(squares, roots, [(16 / 255) ** 2 * 0.9999, (32 / 255) ** 2 * 0.99])
  found = {(round(p.budget, 4), p.kind): p for p in points}
  for kind in ("signs", "half", "all"):
    point = found[round((16 / 255) ** 2, 4), kind]
    assert point.median == pytest.approx(16 / 255, rel=1e-3) and point.num_pictures == 3 * (
      1 + (kind == "all")
    )
    assert point.low <= point.median <= point.high
  far = found[round((32 / 255) ** 2 * 0.99, 4), "half"]
  assert far.num_pictures == 0 and np.isnan(far.median)


def test_the_first_crossing_counts():
  lpips = np.array([[0.1, 0.0], [0.3, 0.1], [0.2, 0.15], [0.4, 0.2]])
  own = np.array([[1.0, 0.0], [3.0, 1.0], [9.0, 2.0], [9.0, 4.0]])
  np.testing.assert_allclose(calibration.read_off(lpips, own, 0.2), [2.0, 4.0])
  np.testing.assert_allclose(calibration.read_off(lpips, own, 0.05), [0.5, 0.5])
  assert calibration.read_off(lpips, own, 0.35).tolist() == pytest.approx([9.0])


@pytest.mark.slow
def test_differences_are_of_one_level():
  from ml_collections import ConfigDict

  from udp_jax.models import factory

  model = factory.open_model(ConfigDict({"path": "tiny_ldm", "image_size": 0}), {})
  images = np.random.default_rng(1).integers(60, 190, (2, 64, 64, 3)).astype(np.uint8)
  found = calibration.differences(images, model, seed=0)
  assert list(found) == ["uniform noise", "sign noise", "photoguard_encoder"]
  for difference in found.values():
    assert difference.shape == images.shape and 0.4 < np.abs(difference).mean() <= 1
    assert np.abs(difference).max() <= 1 + 1e-5
