"""What every purifier must do. New modules of the package are found and tested by themselves."""

from __future__ import annotations

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.docstrings import check_constructor
from udp_jax import purifiers, registry
from udp_jax.errors import ConfigError
from udp_jax.ops.image import to_float
from udp_jax.purifiers import Purifier, ranges

KEY = jax.random.key(31)
IDS = np.array([4, 900_000_000, 17, 5])
# Those that take pictures of the model's size only.
ONE_SIZE = ("diffpure", "freqpure")
NAMES = purifiers.available()


def constructor(name: str):
  return getattr(importlib.import_module(f"udp_jax.purifiers.{name}"), name)


@pytest.fixture(scope="module", params=NAMES)
def case(request, build):
  """(name, purifier, params, images (4, H, W, 3), purified): an odd size where the method may."""
  name = request.param
  purifier, params = build(name)
  height, width = (8, 8) if name in ONE_SIZE else (13, 10)
  y, x, c = np.mgrid[:height, :width, :3]
  generator = np.random.default_rng(0)
  # Gentle slopes and weak noise, so that filters which keep edges find something to smooth.
  smooth = 128 + 9 * np.sin(0.6 * x + 0.4 * y + c) * np.arange(1, 5)[:, None, None, None]
  levels = np.clip(smooth + generator.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
  images = to_float(levels)
  purified, _ = purifiers.run(purifier, params, purifiers.picture_keys(KEY, IDS), images)
  return name, purifier, params, images, purified


def test_modules_were_found():
  assert {"impress", "jpeg", "diffpure", "gridpure", "adverse_cleaner", "chain"} <= set(NAMES)
  assert len(NAMES) >= 20 and "base" not in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_interface(name, latent_model):
  """One function of the module's name: a model, then documented keyword-only options."""
  function = constructor(name)
  check_constructor(function)
  assert inspect.signature(function).return_annotation in ("Purifier", Purifier)
  assert inspect.getmodule(function).__doc__
  with pytest.raises(ConfigError, match=f"purifier {name} has no option 'strength'"):
    purifiers.build(name, latent_model, {"strength": 1})


def test_shape_range_and_effect(case):
  name, purifier, params, images, purified = case
  assert purified.shape == images.shape and purified.dtype == jnp.float32
  assert np.isfinite(purified).all()
  assert purified.min() >= 0.0 and purified.max() <= 1.0
  # Every picture changes, by more than its rounding and not into something else.
  change = np.abs(np.asarray(purified - images)).mean((1, 2, 3))
  assert (change > 1e-3).all() and (change < 0.35).all()


def test_jit_and_apply_say_the_same(case):
  name, purifier, params, images, purified = case
  keys = purifiers.picture_keys(KEY, IDS)
  whole = jax.jit(purifier.apply)(params, keys, images)
  np.testing.assert_allclose(whole, purified, atol=2e-5)


def test_the_key_decides_and_the_batch_does_not(case):
  """A picture alone, elsewhere in a batch, or again: the same. Another key or id: another draw."""
  name, purifier, params, images, purified = case
  keys = purifiers.picture_keys(KEY, IDS)
  again, _ = purifiers.run(purifier, params, keys, images)
  np.testing.assert_array_equal(again, purified)
  turned, _ = purifiers.run(purifier, params, keys[::-1], images[::-1])
  np.testing.assert_allclose(turned[::-1], purified, atol=2e-5)
  alone, _ = purifiers.run(purifier, params, keys[2:3], images[2:3])
  np.testing.assert_allclose(alone, purified[2:3], atol=2e-5)
  other, _ = purifiers.run(
    purifier, params, purifiers.picture_keys(jax.random.key(32), IDS), images
  )
  draws = {"gaussian_noise", "chain", "impress", "diffpure", "gridpure", "total_variation"}
  draws |= {"freqpure", "noisy_upscaling"}
  moved = np.abs(np.asarray(other - purified)).max((1, 2, 3)) > 1e-4
  assert moved.all() if name in draws else not moved.any()


def test_eight_bits_in_and_out(case):
  """`purify`: any number of pictures, filled up to whole batches, rounded once."""
  name, purifier, params, images, purified = case
  levels = np.asarray(jnp.round(255 * images), np.uint8)
  done: list[float] = []
  out = purifiers.purify(
    purifier, params, KEY, levels, IDS, purifiers.Batching(3), on_progress=done.append
  )
  assert out.dtype == np.uint8 and done[-1] == 4 and sorted(done) == done
  # A value within rounding of a half may fall on either side in a batch of another size.
  assert np.abs(out - 255 * np.asarray(purified)).max() <= 0.51


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_type_and_every_number_a_range(name):
  function = constructor(name)
  for option, field in registry.fields(function).items():
    if field.annotation in ("int", "float", "int | Sequence[int]"):
      assert option in ranges.RANGES, option
      for value in (float("nan"), float("inf"), -1e30, 1e30, True, "many", None):
        with pytest.raises(ConfigError, match=f"purifier {name}: {option} must be"):
          ranges.check(function, name, {option: value})
    if field.default is not registry.REQUIRED:
      ranges.check(function, name, {option: field.default})


def test_unknown_and_missing(latent_model, gaussian_model):
  with pytest.raises(ConfigError, match="unknown purifier 'bleach'; known: adverse_cleaner, .*vae"):
    purifiers.build("bleach", None, {})
  for name in ("impress", "diffpure", "freqpure", "gridpure", "vae_roundtrip"):
    with pytest.raises(ConfigError, match="give --model=FOLDER"):
      purifiers.build(name, None, {})
  for name in ("impress", "vae_roundtrip"):
    with pytest.raises(ConfigError, match="give a latent diffusion model"):
      purifiers.build(name, gaussian_model, {})
  with pytest.raises(ConfigError, match="std_255 must be a number, got 'x'"):
    purifiers.build("gaussian_noise", None, {"std_255": "x"})
