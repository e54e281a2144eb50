"""Bands: their starts, which pixels pull, what cannot be used, and that every method takes one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.banded import KINDS, PARTS, pulled_by
from tests.protections.rounds import KEY, PARAMS, PICTURES, RADIUS, STEP, build, deltas
from udp_jax import protections, registry
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.ops import bands
from udp_jax.ops.image import quantise_within
from udp_jax.protections import constraints, spectrum
from udp_jax.protections.options import Spectrum

LOW = {"band": "gaussian", "band_sigma": 1.0}
# They take what another method made, move latents, or find filters of their own.
WITHOUT = ("matched_noise", "shuffled_delta", "sds_z", "blurguard")
# Sizes that suit a model of a few operations.
SMALL = {"train_steps": 3, "perturb_steps": 2, "learning_rate": 0.05, "perceptual": ""}
SMALL |= {"num_draws": 2, "step_size_255": 2}


def options_of(name):
  known = registry.fields(registry.constructor("udp_jax.protections", name))
  pool = {"warmup_rounds": 1, "restart_every": 1} if name == "metacloak" else {}
  return {n: value for n, value in SMALL.items() if n.removesuffix("_255") in known} | pool


@pytest.mark.parametrize("name", protections.available())
def test_every_method_that_moves_pixels_takes_a_band(name, latent_model):
  options = options_of(name) | {"radius_255": 8}
  if name in WITHOUT:
    with pytest.raises(ConfigError, match=f"protection {name} has no option 'band'; it has"):
      protections.build(name, latent_model, options | LOW)
    return
  with pytest.raises(ConfigError, match="unknown band 'comb'; known: gaussian, dct, pyramid"):
    protections.build(name, latent_model, options | {"band": "comb"})
  method = protections.build(name, latent_model, options | LOW)
  mask = np.ones((6, 8, 8, 1), np.uint8)
  mask[1, :3] = 0
  pictures = PICTURES.copy()
  pictures[2] = pictures[2, ..., :1]
  pictures[3, :4], pictures[3, 4:] = 1, 254
  data = batches.make_batches(
    pictures, 6, mask=mask, grey=np.eye(6, dtype=np.uint8)[2], reference=pictures[::-1]
  )
  state, update = jax.jit(method.init)(KEY, data, PARAMS), jax.jit(method.update)
  for _ in range(3 if name == "fsmg" else 2):  # Its first round only trains.
    state, _ = update(KEY, state, data, PARAMS)
  delta = np.asarray(state.delta[0])
  made = np.asarray(quantise_within(pictures, jnp.asarray(delta), 8)).astype(int)
  assert np.abs(made - pictures).max() <= 8 and np.abs(delta).max() <= 8 / 255 + 1e-7
  seen = pictures / 255 + delta
  assert seen.min() >= -1e-6 and seen.max() <= 1 + 1e-6
  assert not delta[1, :3].any() and delta[1, 3:].any()
  np.testing.assert_allclose(delta[2, ..., 0], delta[2, ..., 2], atol=1e-6)
  assert np.abs(delta).max((1, 2, 3)).min() > 0.9 / 255
  # Of a mask, of white and of black the edges stay; of a white draw half would be here.
  free = jnp.asarray(delta[np.array([0, 4, 5])])
  assert np.mean(bands.energy_share(free, 0.7, 2.0)) < 0.1


def test_pixels_at_a_bound_pull_inwards_only():
  band = spectrum.band_of(KINDS["gaussian"], RADIUS)
  (level,) = band.levels
  variable = (jnp.full((1, 12, 16, 3), 2 * RADIUS).at[:, :, 8:].set(0.1 * RADIUS),)
  delta = jnp.clip(level.operator(variable[0]), -RADIUS, RADIUS)
  pinned = np.asarray(level.operator(variable[0]) > RADIUS + 1e-5)
  assert 0.2 < pinned.mean() < 0.8
  ones = jnp.ones(delta.shape)
  (outward,), (inward,) = (band.pulled(sign * ones, variable, delta) for sign in (-1.0, 1.0))
  np.testing.assert_allclose(inward, level.operator(ones), atol=1e-6)
  np.testing.assert_allclose(outward, -level.operator(jnp.where(pinned, 0.0, ones)), atol=1e-6)


def test_levels_of_a_pyramid_keep_their_shares():
  band = spectrum.band_of(KINDS["pyramid"], RADIUS)
  wild = tuple(100 * jnp.asarray(PARTS) for _ in band.levels)
  fine, coarse = (jnp.clip(x, -1, 1) for x in band._parts(wild))
  assert np.abs(fine).max() == pytest.approx(0.6 * RADIUS)
  assert np.abs(coarse).max() == pytest.approx(0.4 * RADIUS)
  assert np.abs(band.made(wild)).max() <= RADIUS * (1 + 1e-6)
  share = [bands.energy_share(x, 0.0, 0.2)[0] for x in (fine, coarse)]
  assert share[0] < share[1]


@pytest.mark.parametrize("start", ["uniform", "sign"])
@pytest.mark.parametrize("kind", ["gaussian", "dct"])
def test_a_start_is_as_strong_as_without_a_band(kind, start):
  state, band = pulled_by(PARTS, kind, steps=0, start=start)
  plain, _ = pulled_by(PARTS, kind, steps=0, start=start)
  whole = constraints.linf(RADIUS, start=start).init(KEY[None], jnp.full((1, 12, 16, 3), 0.5))
  strength = np.abs(state.delta).mean() / np.abs(whole).mean()
  assert 0.6 < strength < 1.01  # What exceeds the budget is clipped.
  np.testing.assert_array_equal(state.delta, plain.delta)
  assert bands.energy_share(state.delta, 0.6, 2.0)[0] < 0.12  # Clipping leaves the band.


def test_a_perturbation_does_not_depend_on_its_batch(latent_model):
  method = build("photoguard_encoder", latent_model, **LOW)
  halves = deltas(method, 3).reshape(4, 6, 8, 8, 3)
  whole = deltas(method, 3, batches.make_batches(PICTURES, 6)).reshape(4, 6, 8, 8, 3)
  np.testing.assert_allclose(halves, whole, atol=1e-6)
  assert np.abs(whole[-1]).max() > 2 * STEP


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"band_sigma": 2.0}, "band_sigma is set, but band is '': there is no band without it"),
    ({"band": "gaussian", "band_high": 0.4}, "band_high is set, but band is 'gaussian': the band"),
    ({"band": "dct", "band_sigma": 1.0}, "'dct' takes band_low, band_high, band_reach"),
    ({"band": "dct", "band_low": 0.4, "band_high": 0.4}, "need 0 <= band_low < band_high"),
    ({"band": "gaussian", "band_sigma": 0.0}, "band_sigma is 0.0: it must be positive"),
    ({"band": "gaussian", "band_reach": 0.5}, "band_reach is 0.5: it must be 1 or more"),
    ({"band": "pyramid", "band_shares": "0.5,0.6"}, "band_shares is '0.5,0.6': give each"),
    ({"band": "pyramid", "band_shares": "half"}, "band_shares is 'half'"),
  ],
)
def test_bands_that_cannot_be_used(given, message):
  with pytest.raises(ConfigError, match=message):
    spectrum.band_of(Spectrum(**given), RADIUS)


def test_every_field_belongs_to_a_band():
  used = {name for names in spectrum.FIELDS.values() for name in names}
  assert used == {field.name for field in dataclasses.fields(Spectrum)} - {"band"}
