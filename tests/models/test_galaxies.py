"""galaxygrad's score models: the network against NumPy, the process, the files, and their use."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import protections, purifiers
from udp_jax.data import batches
from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import factory, galaxies, places
from udp_jax.studies import usefulness

SIZE = 8


@pytest.fixture(scope="module")
def params():
  generator = np.random.default_rng(0)
  return {
    name: generator.normal(0, 0.1, shape).astype(np.float32)
    for name, shape in galaxies._shapes(SIZE).items()
  }


@pytest.fixture
def package(params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
  """The name of a model whose file holds `params`, in the layout of the package's files."""
  with (tmp_path / "small.eqx").open("wb") as file:
    for array in params.values():
      np.save(file, array)
    np.save(file, np.asarray(10.0))
  digest = hashlib.sha256((tmp_path / "small.eqx").read_bytes()).hexdigest()
  monkeypatch.setitem(galaxies.FILES, "small", galaxies.File("small.eqx", SIZE, digest))
  return f"galaxygrad:small@{tmp_path}"


def by_hand(params, y, t):
  """The mixer in NumPy, one picture (H, W) at a time, as equinox defines its layers."""
  p = {name: value.astype(np.float64) for name, value in params.items()}

  def norm(name, x):
    normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return normed * p[f"{name}/weight"] + p[f"{name}/bias"]

  def mlp(name, x):
    hidden = np.maximum(p[f"{name}/0/weight"] @ x + p[f"{name}/0/bias"], 0)
    return p[f"{name}/1/weight"] @ hidden + p[f"{name}/1/bias"]

  planes = np.stack([y, np.full_like(y, t / 10)])
  side = len(y) // 4
  x = np.zeros((64, side, side))
  for row in range(side):
    for column in range(side):
      patch = planes[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
      x[:, row, column] = (p["conv_in/weight"] * patch).sum((1, 2, 3)) + p["conv_in/bias"][:, 0, 0]
  x = x.reshape(64, side * side)
  for number in range(4):
    normed = norm(f"blocks/{number}/norm1", x)
    x = x + np.stack([mlp(f"blocks/{number}/patches", line) for line in normed])
    x = x.T
    normed = norm(f"blocks/{number}/norm2", x)
    x = x + np.stack([mlp(f"blocks/{number}/hidden", line) for line in normed])
    x = x.T
  x = norm("norm", x).reshape(64, side, side)
  # The map with zeros between its values and around them, correlated with the kernel.
  dilated = np.zeros((64, 4 * side + 3, 4 * side + 3))
  dilated[:, 3 : 4 * side + 3 : 4, 3 : 4 * side + 3 : 4] = x
  out = np.zeros_like(y)
  for row in range(len(y)):
    for column in range(len(y)):
      part = dilated[:, row : row + 4, column : column + 4]
      out[row, column] = (p["conv_out/weight"][0] * part).sum() + p["conv_out/bias"].item()
  return out


def test_the_network_by_hand(params):
  y = np.random.default_rng(1).normal(1, 2, (2, SIZE, SIZE))
  t = np.array([0.3, 7.0])
  expected = np.stack([by_hand(params, one, time) for one, time in zip(y, t)])
  found = galaxies.score(params, jnp.asarray(y[..., None], jnp.float32), jnp.asarray(t))
  np.testing.assert_allclose(found[..., 0], expected, atol=1e-4 * np.abs(expected).max())


def test_the_score_becomes_the_noise_of_a_discrete_process(params):
  """Noising a picture in our range is noising it in the network's, whose score is -noise / std."""
  model = galaxies.galaxy_diffusion(SIZE, channels=1)
  generator = np.random.default_rng(2)
  images = generator.uniform(size=(3, SIZE, SIZE, 1))
  noise, steps = generator.normal(size=images.shape), np.array([0, 200, 999])
  abar = np.asarray(model.schedule.alphas_cumprod, np.float64)[steps].reshape(3, 1, 1, 1)
  x_t = np.sqrt(abar) * (2 * images - 1) + np.sqrt(1 - abar) * noise
  t = (steps + 1) / 100
  wide = t.reshape(3, 1, 1, 1)
  y = -0.5 + 9 * images
  y_t = np.exp(-wide / 2) * y + np.sqrt(1 - np.exp(-wide)) * noise
  expected = np.stack([by_hand(params, one[..., 0], time) for one, time in zip(y_t, t)])
  expected = -np.sqrt(1 - np.exp(-wide)) * expected[..., None]
  found = model.apply(params, jnp.asarray(x_t, jnp.float32), jnp.asarray(steps))
  np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
  assert (np.diff(model.schedule.alphas_cumprod) < 0).all()
  # Three channels are three pictures.
  rgb = galaxies.galaxy_diffusion(SIZE)
  stacked = jnp.asarray(np.concatenate([x_t, 2 * x_t, x_t], -1), jnp.float32)
  several = rgb.apply(params, stacked, jnp.asarray(steps))
  np.testing.assert_allclose(several[..., :1], found, atol=1e-5)
  np.testing.assert_allclose(several[..., 2], several[..., 0], atol=1e-6)


def test_files(package, params, tmp_path):
  model, read = galaxies.load(package)
  assert model.image_shape == (SIZE, SIZE, 3) and model.reconstruct is None
  assert read.keys() == params.keys()
  for name, value in params.items():
    np.testing.assert_array_equal(read[name], value)
  assert places.kind_of(package) == places.PIXEL and len(usefulness.fingerprint(package)) == 64
  with pytest.raises(
    ConfigError, match=r"unknown model 'galaxygrad:m31'; known: galaxygrad:\{hsc32"
  ):
    galaxies.load("galaxygrad:m31")
  with pytest.raises(MissingDataError, match="there is no file"):
    galaxies.load(f"galaxygrad:hsc64@{tmp_path}")
  with pytest.raises(ConfigError, match="has no U-Net"):
    factory.load(package)
  file = tmp_path / "small.eqx"
  with pytest.raises(
    BadDataError, match="no score model of galaxygrad: blocks/0/patches/0/weight is"
  ):
    galaxies._read(file, 16)
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(BadDataError, match=r"not the file of galaxygrad 0.2.1, by its sha256"):
    galaxies.load(package)


def test_a_package_that_is_not_there(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match=r"pip install --no-deps galaxygrad==0.2.1"):
    galaxies.load("galaxygrad:hsc64")


@pytest.mark.parametrize("method", ["advdm", "udp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_protections_take_one_channel(params, method, channels):
  model = galaxies.galaxy_diffusion(SIZE, channels=channels)
  images = np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE, channels)).astype(np.uint8)
  few = {"train_steps": 2, "perturb_steps": 1} if method == "udp" else {}
  options = {"radius_255": 8, "step_size_255": 4, **few}
  built = protections.build(method, model, options)
  data = batches.make_batches(images, 2)
  made, _ = protections.run(built, jax.random.key(0), data, params, num_rounds=2)
  moved = 255 * batches.unbatch(np.asarray(made), 3) - images
  assert moved.shape == images.shape and 3 < np.abs(moved).max() < 8.01
  fresh = model.init(jax.random.key(1))
  assert {name: value.shape for name, value in fresh.items()} == galaxies._shapes(SIZE)


def test_a_prior_for_diffpure(package):
  opened = factory.open_model(type("Config", (dict,), {"path": package})(), {})
  method = purifiers.build("diffpure", opened.model, {"timestep": 3})
  grey = np.random.default_rng(4).integers(0, 256, (2, SIZE, SIZE, 1)).astype(np.uint8)
  made = purifiers.purify(method, opened.params, jax.random.key(0), np.repeat(grey, 3, -1), [0, 1])
  assert made.shape == (2, SIZE, SIZE, 3) and 0 < np.abs(made.astype(int) - grey).mean() < 60


@pytest.mark.skipif(importlib.util.find_spec("galaxygrad") is None, reason="needs galaxygrad")
def test_the_real_model_knows_galaxies():
  """A disc on a dark sky is denoised; its loss is far below that of predicting nothing."""
  model, params = galaxies.load("galaxygrad:hsc64", channels=1)
  y, x = np.mgrid[:64, :64] - 31.5
  images = np.exp(-(x**2 + y**2) / 60)[None, ..., None] * 0.6 + 0.5 / 9
  x0 = jnp.asarray(2 * images - 1, jnp.float32)
  noise = jax.random.normal(jax.random.key(0), x0.shape)
  abar = model.schedule.alphas_cumprod[50]
  x_t = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
  found = model.apply(params, x_t, jnp.array([50]))
  assert float(jnp.square(found - noise).mean()) < 0.05
