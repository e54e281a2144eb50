"""Our schedules and samplers against PyTorch diffusers' schedulers, live.

The network is a closed form in both. Our chains draw their own noise; it is recorded and handed to
diffusers, so that whole chains are compared, not steps alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm
from make_goldens import SCHEDULES, prediction

from udp_jax.models import weights
from udp_jax.ops import chain, samplers, schedules

SHAPE = (2, 4, 4, 3)
# Largest absolute error over the largest magnitude of a chain's end. Rounding of abar (float32 in
# diffusers, float64 in ours) is all that differs.
TOLERANCE = 1e-4


def predict(x_t, timesteps):
  """`make_goldens.prediction` in JAX."""
  return 1.5 * jnp.tanh(x_t + timesteps.astype(jnp.float32)[:, None, None, None] / 500.0 - 1.0)


def our_schedule(name, kind):
  return weights.schedule_from_config(SCHEDULES[name] | {"prediction_type": kind})


@pytest.fixture
def record(monkeypatch):
  """Runs a chain of ours; returns its end and the noises it drew, in order."""

  def run(chain, x_t):
    drawn = []
    normal = jax.random.normal

    def recorded(*args, **kwargs):
      noise = normal(*args, **kwargs)
      jax.debug.callback(lambda value: drawn.append(np.asarray(value)), noise, ordered=True)
      return noise

    with monkeypatch.context() as patch:
      patch.setattr(jax.random, "normal", recorded)
      end = np.asarray(jax.jit(chain)(x_t))
      jax.effects_barrier()
    return end, drawn

  return run


def start(seed=0):
  return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def check(actual, expected):
  expected = expected.numpy()
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def their_ddpm(scheduler, x_t, noises, num_steps, monkeypatch):
  """The chain of diffusers with our noises.

  Its last step draws none at t = 0 (ours does, and drops it), and one without weight elsewhere.
  """
  scheduler.set_timesteps(num_steps)
  remaining = [torch.from_numpy(noise) for noise in noises]
  x_t = torch.from_numpy(x_t)
  with monkeypatch.context() as patch:
    patch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: remaining.pop(0))
    for t in scheduler.timesteps:
      x_t = scheduler.step(prediction(x_t, int(t)), int(t), x_t).prev_sample
  assert len(remaining) == (1 if scheduler.timesteps[-1] == 0 else 0)
  return x_t


def their_ddim(scheduler, x_t, noises, num_steps, eta, clipped_prediction=False):
  scheduler.set_timesteps(num_steps)
  x_t = torch.from_numpy(x_t)
  for i, t in enumerate(scheduler.timesteps):
    x_t = scheduler.step(
      prediction(x_t, int(t)),
      int(t),
      x_t,
      eta=eta,
      use_clipped_model_output=clipped_prediction,
      variance_noise=torch.from_numpy(noises[i]) if eta else None,
    ).prev_sample
  return x_t


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("num_steps", [1000, 50])
def test_alphas_cumprod(name, num_steps):
  fields = SCHEDULES[name] | {"num_train_timesteps": num_steps}
  expected = DDPMScheduler(**fields).alphas_cumprod.numpy()
  actual = weights.schedule_from_config(fields).alphas_cumprod
  np.testing.assert_allclose(actual, expected, rtol=5e-5)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_add_noise_and_velocity(name):
  theirs = DDPMScheduler(**SCHEDULES[name])
  schedule = our_schedule(name, "v_prediction")
  x0, noise = start(1), start(2)
  for timesteps in ([0, 999], [1, 500], [20, 980]):
    timesteps = np.array(timesteps)
    arguments = torch.from_numpy(x0), torch.from_numpy(noise), torch.from_numpy(timesteps)
    check(schedules.add_noise(schedule, x0, noise, timesteps), theirs.add_noise(*arguments))
    check(
      schedules.training_target(schedule, x0, noise, timesteps), theirs.get_velocity(*arguments)
    )


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("num_steps", [1000, 250, 50, 10, 3, 1])
def test_timesteps(spacing, num_steps):
  for scheduler in (
    DDIMScheduler(timestep_spacing=spacing),
    DDPMScheduler(timestep_spacing=spacing),
  ):
    scheduler.set_timesteps(num_steps)
    actual = samplers.spaced_timesteps(1000, num_steps, spacing=spacing)
    np.testing.assert_array_equal(actual, scheduler.timesteps.numpy())


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(record, name, kind, clip, eta):

  def chain(x_t):
    return samplers.ddim(
      jax.random.key(3),
      predict,
      our_schedule(name, kind),
      x_t,
      steps=samplers.Steps(20),
      options=samplers.DDIM(eta, clip),
    )

  end, noises = record(chain, start())
  assert len(noises) == (20 if eta else 0)
  scheduler = DDIMScheduler(**SCHEDULES[name], prediction_type=kind, clip_sample=clip)
  check(end, their_ddim(scheduler, start(), noises, 20, eta))


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("clipped_prediction", [False, True])
def test_ddim_options(record, spacing, to_one, clipped_prediction):
  offset = 1 if spacing == "leading" else 0

  def chain(x_t):
    return samplers.ddim(
      jax.random.key(3),
      predict,
      our_schedule("scaled_linear", "epsilon"),
      x_t,
      steps=samplers.Steps(20, spacing, offset),
      options=samplers.DDIM(
        0.7, use_clipped_prediction=clipped_prediction, set_alpha_to_one=to_one
      ),
    )

  end, noises = record(chain, start())
  scheduler = DDIMScheduler(
    **SCHEDULES["scaled_linear"],
    timestep_spacing=spacing,
    steps_offset=offset,
    set_alpha_to_one=to_one,
  )
  check(end, their_ddim(scheduler, start(), noises, 20, 0.7, clipped_prediction))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", chain.VARIANCES)
def test_ddpm(record, monkeypatch, name, kind, clip, variance):

  def chain(x_t):
    return samplers.ddpm(
      jax.random.key(3),
      predict,
      our_schedule(name, kind),
      x_t,
      steps=samplers.Steps(20),
      options=samplers.DDPM(variance, clip),
    )

  end, noises = record(chain, start())
  options = {"prediction_type": kind, "clip_sample": clip, "variance_type": variance}
  scheduler = DDPMScheduler(**SCHEDULES[name], **options)
  check(end, their_ddpm(scheduler, start(), noises, 20, monkeypatch))


def test_all_thousand_steps_of_ddpm(record, monkeypatch):
  schedule = our_schedule("linear", "epsilon")
  end, noises = record(
    lambda x_t: samplers.ddpm(jax.random.key(3), predict, schedule, x_t), start()
  )
  scheduler = DDPMScheduler(**SCHEDULES["linear"])
  check(end, their_ddpm(scheduler, start(), noises, 1000, monkeypatch))


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_ddpm_spacings(record, monkeypatch, spacing):
  offset = 1 if spacing == "leading" else 0
  steps = samplers.Steps(20, spacing, offset)

  def chain(x_t):
    schedule = our_schedule("scaled_linear", "epsilon")
    return samplers.ddpm(jax.random.key(3), predict, schedule, x_t, steps=steps)

  end, noises = record(chain, start())
  scheduler = DDPMScheduler(
    **SCHEDULES["scaled_linear"], timestep_spacing=spacing, steps_offset=offset
  )
  check(end, their_ddpm(scheduler, start(), noises, 20, monkeypatch))


def their_dpm_solver(scheduler, x_t, num_steps, first_step=0):
  scheduler.set_timesteps(num_steps)
  scheduler.set_begin_index(first_step)
  x_t = torch.from_numpy(x_t)
  for t in scheduler.timesteps[first_step:]:
    x_t = scheduler.step(prediction(x_t, int(t)), t, x_t).prev_sample
  return x_t


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("num_steps", [249, 50, 20, 9, 1])
def test_timesteps_of_dpm_solver(spacing, num_steps):
  offset = 1 if spacing == "leading" else 0
  scheduler = DPMSolverMultistepScheduler(timestep_spacing=spacing, steps_offset=offset)
  scheduler.set_timesteps(num_steps)
  options = {"spacing": spacing, "steps_offset": offset, "skip_last": True}
  actual = samplers.spaced_timesteps(1000, num_steps, **options)
  np.testing.assert_array_equal(actual, scheduler.timesteps.numpy())


@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
@pytest.mark.parametrize(
  ("spacing", "num_steps", "first_step"),
  [("linspace", 20, 0), ("leading", 9, 0), ("trailing", 25, 0), ("leading", 20, 7)],
)
def test_dpm_solver(kind, name, spacing, num_steps, first_step):
  offset = 1 if spacing == "leading" else 0
  schedule = our_schedule(name, kind)
  end = samplers.dpm_solver_pp_2m(
    jax.random.key(3),
    predict,
    schedule,
    start(),
    steps=samplers.Steps(num_steps, spacing, offset),
    clip_sample=False,
    first_step=first_step,
  )
  scheduler = DPMSolverMultistepScheduler(
    **SCHEDULES[name], prediction_type=kind, timestep_spacing=spacing, steps_offset=offset
  )
  check(end, their_dpm_solver(scheduler, start(), num_steps, first_step))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_zero_terminal_snr(record, monkeypatch, name, kind):
  """The whole chain from pure noise at timestep 999, where nothing of x0 is left."""
  fields = SCHEDULES[name] | {"rescale_betas_zero_snr": True, "prediction_type": kind}
  schedule = weights.schedule_from_config(fields)
  expected = DDPMScheduler(**fields).alphas_cumprod.numpy()
  assert schedule.alphas_cumprod[-1] == expected[-1] == 0.0
  np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=2e-3, atol=1e-7)
  steps = samplers.Steps(20, "trailing")

  def ddim(x_t):
    options = samplers.DDIM(0.5)
    return samplers.ddim(jax.random.key(3), predict, schedule, x_t, steps=steps, options=options)

  end, noises = record(ddim, start())
  scheduler = DDIMScheduler(**fields, timestep_spacing="trailing")
  check(end, their_ddim(scheduler, start(), noises, 20, 0.5))

  def ddpm(x_t):
    return samplers.ddpm(jax.random.key(3), predict, schedule, x_t, steps=steps)

  end, noises = record(ddpm, start())
  scheduler = DDPMScheduler(**fields, timestep_spacing="trailing")
  check(end, their_ddpm(scheduler, start(), noises, 20, monkeypatch))
  end = samplers.dpm_solver_pp_2m(
    jax.random.key(3), predict, schedule, start(), clip_sample=False, steps=steps
  )
  scheduler = DPMSolverMultistepScheduler(**fields, timestep_spacing="trailing")
  check(end, their_dpm_solver(scheduler, start(), 20))
