"""GrIDPure: its windows, and what it mixes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.purifiers.photographs import apply, apply_with, photograph
from udp_jax import purifiers
from udp_jax.ops import schedules
from udp_jax.ops.image import to_float
from udp_jax.purifiers import gridpure as gridpure_module


def test_gridpure_plan_covers_and_counts():
  windows = gridpure_module.plan(20, 13, 8, 4)
  *grid, corners = windows
  assert [(y, x) for [(_, _, y, x, _)] in grid] == [
    (y, x) for y in (0, 4, 8, 12) for x in (0, 4, 5)
  ]
  assert corners == [(0, 0, 0, 0, 4), (0, 4, 0, 9, 4), (4, 0, 16, 0, 4), (4, 4, 16, 9, 4)]
  assert gridpure_module.plan(8, 8, 8, 4) == [[(0, 0, 0, 0, 8)]]
  counts = np.zeros((20, 13), int)
  for pieces in windows:
    for _, _, y, x, size in pieces:
      counts[y : y + size, x : x + size] += 1
  assert counts.min() >= 1 and counts[0, 0] == 2


def test_gridpure_puts_windows_back(gaussian_model):
  """With hardly any noise and a network that returns what it sees, the picture comes back."""
  schedule = schedules.from_betas(np.full(10, 1e-6), prediction_type="sample")
  same = gaussian_model._replace(schedule=schedule, apply=lambda p, x, t, cond=None, keys=None: x)
  purifier = purifiers.build("gridpure", same, {"timestep": 1, "num_iterations": 3, "stride": 3})
  images = 0.1 + 0.8 * to_float(photograph(2, 20, 13))
  np.testing.assert_allclose(apply(purifier, images), images, atol=0.01)


def test_gridpure_mixes_what_it_had(gaussian_model):
  """A network that always sees the same grey: x <- (1 - mix) * grey + mix * x, three times."""
  model = gaussian_model._replace(
    schedule=gaussian_model.schedule._replace(prediction_type="sample"),
    apply=lambda p, x, t, cond=None, keys=None: jnp.full_like(x, -0.4),  # 0.3 in [0, 1].
  )
  options = {"timestep": 4, "num_iterations": 3, "mix": 0.25}
  images = to_float(photograph(2, 20, 13))
  got = apply(purifiers.build("gridpure", model, options), images)
  np.testing.assert_allclose(got, 0.25**3 * images + (1 - 0.25**3) * 0.3, atol=1e-5)


def test_gridpure_passes_its_conditioning_on(gaussian_model):
  """A network that returns the grey it is told of."""
  model = gaussian_model._replace(
    schedule=gaussian_model.schedule._replace(prediction_type="sample"),
    apply=lambda p, x, t, cond=None, keys=None: jnp.broadcast_to(cond[:1, :1, None], x.shape),
  )
  options = {"timestep": 2, "num_iterations": 1, "mix": 0.0, "cond": jnp.full((1, 1), -0.4)}
  got = apply(purifiers.build("gridpure", model, options), to_float(photograph(2, 12, 10)))
  np.testing.assert_allclose(got, 0.3, atol=1e-5)


@pytest.mark.slow
def test_gridpure_on_latents(tiny_pipeline):
  """Windows of a latent model with its conditioning; what it draws is the picture's own."""
  cond = tiny_pipeline.model.embed(tiny_pipeline.params, tiny_pipeline.tokenizer([""]))
  options = {"timestep": 2, "num_iterations": 1, "cond": cond}
  purifier = purifiers.build("gridpure", tiny_pipeline.model, options)
  images = to_float(photograph(2, 16, 20))
  got = apply_with(purifier, tiny_pipeline, images)
  assert got.shape == images.shape and np.isfinite(got).all()
  assert np.abs(got - images).mean() > 1e-3
