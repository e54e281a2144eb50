"""Schedules and samplers against values that PyTorch diffusers computed.

tests/goldens/make_goldens.py made them. diffusers accumulates abar in float32 and we do in float64,
so the two agree to float32's rounding and not to the bit.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import samplers, schedules

GOLDENS = Path(__file__).parents[1] / "goldens"
SCHEDULES = {
  "linear": schedules.linear,
  "scaled_linear": schedules.scaled_linear,
  "cosine": schedules.cosine,
}


@pytest.fixture(scope="module")
def trajectories():
  with np.load(GOLDENS / "trajectories.npz") as file:
    return {name: file[name] for name in file.files}


def predict(x_t, timesteps):
  """The goldens' closed-form network."""
  return 1.5 * jnp.tanh(x_t + timesteps.astype(jnp.float32)[:, None, None, None] / 500.0 - 1.0)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_alphas_cumprod(name):
  with np.load(GOLDENS / "schedules.npz") as file:
    expected = file[name]
  schedule = SCHEDULES[name]()
  np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=5e-5, atol=0)
  np.testing.assert_allclose(1 - schedule.alphas_cumprod, 1 - expected, rtol=2e-3, atol=0)


def test_timesteps(trajectories):
  np.testing.assert_array_equal(samplers.spaced_timesteps(1000, 10), trajectories["timesteps"])


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
@pytest.mark.parametrize("method", ["ddpm", "ddim0", "ddim1"])
def test_every_step(trajectories, method, kind, clip):
  """Each step from diffusers' own state, so that no error can hide behind another."""
  schedule = schedules.linear(prediction_type=kind)
  states = trajectories[f"{method}_{kind}{'_clip' if clip else ''}"]
  timesteps = trajectories["timesteps"]
  previous = np.append(timesteps[1:], -1)

  @jax.jit
  def step(x_t, t, prev, noise):
    prediction = predict(x_t, jnp.full(2, t))
    if method == "ddpm":
      options = samplers.DDPM(clip_sample=clip)
      return samplers.ddpm_step(schedule, prediction, x_t, t, prev, noise, options=options)
    options = samplers.DDIM(float(method == "ddim1"), clip_sample=clip)
    noise = noise if options.eta else None
    return samplers.ddim_step(schedule, prediction, x_t, t, prev, noise=noise, options=options)

  for i, (t, prev) in enumerate(zip(timesteps, previous, strict=True)):
    actual = step(states[i], t, prev, trajectories["noises"][i])
    scale = np.abs(states[i + 1]).max()
    np.testing.assert_allclose(actual, states[i + 1], rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
def test_whole_ddim_trajectory(trajectories, kind, clip):
  schedule = schedules.linear(prediction_type=kind)
  chain = jax.jit(
    lambda x_t: samplers.ddim(
      jax.random.key(0),
      predict,
      schedule,
      x_t,
      steps=samplers.Steps(10),
      options=samplers.DDIM(clip_sample=clip),
    )
  )
  expected = trajectories[f"ddim0_{kind}{'_clip' if clip else ''}"][-1]
  scale = np.abs(expected).max()
  np.testing.assert_allclose(chain(trajectories["x_t"]), expected, rtol=0, atol=1e-4 * scale)


def test_the_goldens_are_not_degenerate(trajectories):
  """Clipping, eta and the prediction type each change the values that are compared."""
  names = sorted(name for name in trajectories if name[:4] in ("ddpm", "ddim"))
  assert len(names) == 18
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      # Without clipping, DDIM with eta = 1 is DDPM (Song et al. 2021, section 4.1).
      if (first, second) not in {(f"ddim1_{k}", f"ddpm_{k}") for k in schedules.PREDICTION_TYPES}:
        assert np.abs(trajectories[first] - trajectories[second]).max() > 1e-3, (first, second)
