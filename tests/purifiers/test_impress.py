"""IMPRESS: the formula, step by step; batches, chunks and devices change nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import purifiers
from udp_jax.errors import ConfigError, DivergedError
from udp_jax.ops.image import to_float
from udp_jax.purifiers import impress as impress_module

KEYS = purifiers.picture_keys(jax.random.key(3), np.arange(8))
SETTINGS = {
  "num_steps": 24,
  "learning_rate": 0.02,
  "perceptual_weight": 0.5,
  "perceptual_budget": 0.05,
  "noise_std": 0.1,
}


@pytest.fixture(scope="module")
def pictures():
  y, x, c = np.mgrid[:16, :16, :3]
  waves = [np.sin(0.2 * (n + 1) * x + 0.3 * y + c) for n in range(8)]
  noise = np.random.default_rng(1).normal(0, 8, (8, 16, 16, 3))
  return to_float(np.clip(128 + 80 * np.stack(waves) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def purifier(tiny_pipeline, plain_distance):
  """On a real autoencoder of Stable Diffusion's architecture."""
  return purifiers.build("impress", tiny_pipeline.model, SETTINGS | {"perceptual": plain_distance})


@pytest.fixture(scope="module")
def params(purifier, tiny_pipeline):
  return purifier.init(KEYS[0], tiny_pipeline.params)


@pytest.fixture(scope="module")
def outcome(purifier, params, pictures):
  reports: list[tuple[int, np.ndarray]] = []
  purified, losses = purifiers.run(
    purifier,
    params,
    KEYS,
    pictures,
    steps_per_call=7,
    on_progress=lambda done, losses: reports.append((done, losses)),
  )
  return purified, losses, reports


@pytest.mark.slow
def test_budgets_are_in_units_of_lpips(tiny_pipeline, plain_distance, pictures):
  """A calibrated distance takes the budget that its own scale has for it."""
  own = SETTINGS | {"num_steps": 1, "perceptual_weight": 1e4}
  calibrated = plain_distance._replace(calibration=((1e-4, 2e-4), (0.1, 0.2)))
  given = [
    {"perceptual": plain_distance, "perceptual_budget": 1e-3},
    {"perceptual": calibrated, "perceptual_budget": 5e-4},
    {"perceptual": calibrated, "perceptual_budget": 1e-3},
  ]
  losses = []
  for options in given:
    purifier = purifiers.build("impress", tiny_pipeline.model, own | options)
    params = purifier.init(KEYS[0], tiny_pipeline.params)
    losses.append(purifiers.run(purifier, params, KEYS[:2], pictures[:2], steps_per_call=1)[1])
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
  assert (losses[2] < losses[1]).all()
  with pytest.raises(ConfigError, match="budget of 0.3 is in units of LPIPS"):
    purifiers.build("impress", tiny_pipeline.model, own | given[1] | {"perceptual_budget": 0.3})


def test_the_loss_falls(outcome):
  _, losses, _ = outcome
  assert losses.shape == (24, 8) and np.isfinite(losses).all()
  averages = np.stack([losses[i : i + 6].mean(0) for i in range(0, 24, 6)])
  assert (np.diff(averages, axis=0) < 0).all()
  assert (losses[-1] < 0.8 * losses[0]).all()


@pytest.mark.slow  # On a model of a few operations: test_contract.py.
def test_a_batch_of_eight_is_eight_runs_of_one(purifier, params, pictures, outcome):
  purified, losses, _ = outcome
  alone = [purifiers.run(purifier, params, KEYS[i : i + 1], pictures[i : i + 1]) for i in range(8)]
  pixels, histories = zip(*alone)
  np.testing.assert_allclose(np.concatenate(histories, 1), losses, rtol=1e-4)
  np.testing.assert_allclose(np.concatenate(pixels), purified, atol=1e-4)


def test_progress_comes_in_calls_of_equal_length(outcome):
  """24 steps in calls of at most 7: six each, reported once they are over."""
  _, losses, reports = outcome
  assert [done for done, _ in reports] == [6, 12, 18, 24]
  for done, last in reports:
    np.testing.assert_array_equal(last, losses[done - 1])


@pytest.mark.parametrize(
  ("scale_epsilon", "epsilon"), [(False, 1e-5), (True, 1e-5 * 512**2 / 16**2)]
)
def test_first_steps_by_hand(latent_model, plain_distance, pictures, scale_epsilon, epsilon):
  """Adam with its epsilon, the cosine rate and the clamp, from the formula in NumPy."""
  settings = SETTINGS | {"num_steps": 4, "perceptual_budget": 0.0, "perceptual": plain_distance}
  settings["scale_epsilon"] = scale_epsilon
  purifier = purifiers.build("impress", latent_model, settings)
  params = purifier.init(jax.random.key(0))
  gain, weights = (
    np.asarray(x, np.float64) for x in (params["model"]["gain"], params["perceptual"])
  )
  images = np.asarray(pictures[:2], np.float64)
  state = purifier.iteration.start(params, KEYS[:2], pictures[:2])
  x = np.asarray(state.x, np.float64)
  start = x - (2 * images - 1)
  assert start.std() == pytest.approx(0.1, rel=0.05)
  mean, square = np.zeros_like(x), np.zeros_like(x)
  advance = jax.jit(purifier.iteration.advance)
  for step in range(4):
    # The autoencoder takes means m of 2x2 blocks to gain * m, so the gradient of the mean square of
    # r = gain * m - x is 2/n (gain * (block mean of r) - r).
    blocks = lambda v: np.repeat(
      np.repeat(v.reshape(2, 8, 2, 8, 2, 3).mean((2, 4)), 2, axis=1), 2, axis=2
    )
    residue = gain * blocks(x) - x
    gradient = 2.0 / x[0].size * (gain * blocks(residue) - residue)
    far = 0.5 * (x + 1) - images
    gradient += 0.5 * weights * np.sign(far) * 0.5 / x[0].size
    loss = (residue**2).mean((1, 2, 3)) + 0.5 * (weights * np.abs(far)).mean((1, 2, 3))
    mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
    rate = 1e-5 + (0.02 - 1e-5) * 0.5 * (1 + np.cos(np.pi * step / 4))
    unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
    x = np.clip(x - rate * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon), -1, 1)
    state, losses = advance(params, pictures[:2], state)
    np.testing.assert_allclose(losses, loss, rtol=1e-4)
    np.testing.assert_allclose(state.x, x, atol=2e-5)


@pytest.mark.parametrize("scale_epsilon", [True, False])
def test_every_size_takes_the_steps_of_512_pixels(latent_model, plain_distance, scale_epsilon):
  """The same residuals, tiled to other sizes: the same steps only if epsilon is scaled."""
  settings = SETTINGS | {"num_steps": 3, "perceptual": plain_distance, "perceptual_weight": 0.0}
  purifier = purifiers.build("impress", latent_model, settings | {"scale_epsilon": scale_epsilon})
  params = purifier.init(jax.random.key(0))
  tile = np.random.default_rng(0).normal(0, 0.2, (1, 32, 32, 3)).astype(np.float32)
  moved = {}
  for size in (32, 128, 512):
    x = jnp.tile(tile, (1, size // 32, size // 32, 1))
    images = jnp.zeros_like(x)
    state = purifier.iteration.start(params, KEYS[:1], images)._replace(x=x)
    for _ in range(2):
      state, _ = purifier.iteration.advance(params, images, state)
    moved[size] = np.asarray(state.x - x)
    np.testing.assert_allclose(moved[size][:, -32:, -32:], moved[size][:, :32, :32], atol=1e-6)
  steps = [np.abs(moved[size]).mean() for size in (32, 128, 512)]
  for size in (32, 128):
    if scale_epsilon:
      np.testing.assert_allclose(moved[size], moved[512][:, :size, :size], rtol=1e-3, atol=1e-7)
  if not scale_epsilon:
    assert steps[0] > 1.5 * steps[1] > 1.5 * 1.5 * steps[2]
  # What the option leaves alone: the published size.
  assert 1e-5 < steps[2] < 2 * 0.02


def test_within_the_budget_the_distance_costs_nothing(latent_model, plain_distance, pictures):
  runs = []
  for weight in (0.0, 7.0):
    settings = SETTINGS | {"perceptual_weight": weight, "perceptual_budget": 10.0}
    purifier = purifiers.build(
      "impress", latent_model, settings | {"perceptual": plain_distance, "num_steps": 3}
    )
    params = purifier.init(jax.random.key(0))
    runs.append(purifiers.run(purifier, params, KEYS, pictures)[0])
  np.testing.assert_array_equal(*runs)


def test_the_published_settings():
  """The defaults are those of the run against Glaze; the configs name both."""
  from experiments import _cli

  glaze, photoguard = (
    _cli.get_config("purify", f"impress_{name}").options for name in ("glaze", "photoguard")
  )
  names = ("num_steps", "learning_rate", "perceptual_weight", "noise_std", "perceptual_budget")
  assert [glaze[name] for name in names] == [3000, 0.01, 0.1, 0.1, 0.1]
  assert [photoguard[name] for name in names] == [1000, 0.005, 0.01, 0.05, 0.1]
  defaults = impress_module.impress.__kwdefaults__
  assert [defaults[name] for name in names] == [glaze[name] for name in names]


def test_too_small_for_the_distance(latent_model, plain_distance):
  distance = plain_distance._replace(min_size=20, label="PLAIN")
  purifier = purifiers.build("impress", latent_model, {"perceptual": distance})
  with pytest.raises(ConfigError, match="16x16 are too small for PLAIN: it needs 20 pixels"):
    purifiers.run(purifier, purifier.init(KEYS[0]), KEYS[:1], jnp.zeros((1, 16, 16, 3)))


def test_divergence_is_said(latent_model, plain_distance, pictures):
  purifier = purifiers.build("impress", latent_model, SETTINGS | {"perceptual": plain_distance})
  params = purifier.init(KEYS[0])
  params["model"]["gain"] = jnp.full((3,), jnp.nan)
  with pytest.raises(DivergedError, match="not finite"):
    purifiers.run(purifier, params, KEYS, pictures)


SEVERAL = """
import json
import jax, jax.numpy as jnp, numpy as np
from udp_jax import purifiers
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.models.base import DiffusionModel
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.ops import schedules
from udp_jax.purifiers import base

def reconstruct(params, x):
  b, h, w, c = x.shape
  means = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  return jnp.tanh(params["gain"]) * jnp.repeat(jnp.repeat(means, 2, 1), 2, 2)

model = DiffusionModel(lambda key: {"gain": jnp.ones(3)}, None, None, None, None,
  schedules.linear(10), (4, 4, 3), (8, 8, 3), lambda p: p, reconstruct)
distance = PerceptualDistance("d", "d", {}, lambda p, x, y: jnp.abs(x - y).mean((1, 2, 3)), 1, "")
options = {"impress": {"num_steps": 6, "perceptual": distance, "perceptual_budget": 0.01},
  "jpeg": {"quality": (30, 90)}, "gaussian_noise": {}}
levels = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3)).astype(np.uint8)
ids, key = np.arange(13), jax.random.key(1)
mesh = mesh_lib.make_mesh()
found = {"devices": mesh.size}
for name, own in options.items():
  purifier = purifiers.build(name, model, own)
  params = purifier.init(key)
  many = purifiers.purify(purifier, params, key, levels, ids, purifiers.Batching(2, mesh))
  one = purifiers.purify(purifier, params, key, levels, ids)
  found[name] = int(np.abs(many.astype(int) - one).max())
purifier = purifiers.build("impress", model, options["impress"])
params, keys = purifier.init(key), purifiers.picture_keys(key, np.arange(8))
images = jnp.zeros((8, 8, 8, 3))
state = base._start(purifier, mesh, params, keys, images)
text = base._advance.lower(purifier, mesh, 3, params, images, state).compile().as_text()
kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
found["collectives"] = sum(text.count(f" {kind}(") for kind in kinds)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_four_devices_do_what_one_does(process_environment):
  """The codec on the host, draws and the scan of steps, with an uneven number of pictures."""
  flags = process_environment["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
  environment = process_environment | {"XLA_FLAGS": flags}
  done = subprocess.run(
    [sys.executable, "-c", SEVERAL], capture_output=True, text=True, env=environment, timeout=300
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found.pop("devices") == 4 and found.pop("collectives") == 0
  assert set(found) == {"impress", "jpeg", "gaussian_noise"} and max(found.values()) <= 1
