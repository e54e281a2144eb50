"""Perturbations in a band: what a step does, which pixels pull, and the contract of all methods."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.protections.rounds import DATA, KEY, PARAMS, PICTURES, RADIUS, STEP, build, deltas
from udp_jax import protections, registry
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.ops import bands, projections
from udp_jax.ops.image import quantise_within, to_float
from udp_jax.protections import constraints, spectrum
from udp_jax.protections.options import Spectrum

LOW = {"band": "gaussian", "band_sigma": 1.0}
KINDS = {
  "gaussian": Spectrum("gaussian", band_sigma=1.5),
  "dct": Spectrum("dct", band_low=0.1, band_high=0.5),
  "pyramid": Spectrum("pyramid", band_sigma=0.8, band_shares="0.6,0.4"),
}
# They take what another method made, or move latents.
WITHOUT = ("matched_noise", "shuffled_delta", "sds_z")
# Sizes that suit a model of a few operations.
SMALL = {"train_steps": 3, "perturb_steps": 2, "learning_rate": 0.05, "perceptual": ""}
SMALL |= {"num_draws": 2, "step_size_255": 2}
PARTS = np.random.default_rng(3).normal(0, 1, (1, 12, 16, 3)).astype(np.float32)


def options_of(name):
  known = registry.fields(registry.constructor("udp_jax.protections", name))
  return {n: value for n, value in SMALL.items() if n.removesuffix("_255") in known}


def grey_batch(**leaves):
  pictures = np.full((1, 12, 16, 3), 128, np.uint8)
  return jax.tree.map(lambda leaf: leaf[0], batches.make_batches(pictures, 1, **leaves))


def pulled_by(towards, kind, steps=1, start="zero", **leaves):
  """The state after some steps along a gradient that is always the same."""

  def objective(params, images, cond, keys):
    return -(images * towards).sum((1, 2, 3)), {}

  constraint = constraints.linf(RADIUS, start=start, spectrum=KINDS[kind])
  method = protections.pgd(objective, constraint, protections.sign_descent(STEP))
  batch = grey_batch(**leaves)
  state = method.init(KEY, batch, None)
  for _ in range(steps):
    state, _ = jax.jit(method.update)(KEY, state, batch, None)
  return state, constraint.band


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
  rough = protections.build(name, latent_model, options | {"band": ""})
  mask = np.ones((6, 8, 8, 1), np.uint8)
  mask[1, :3] = 0
  pictures = PICTURES.copy()
  pictures[2] = pictures[2, ..., :1]
  pictures[3, :4], pictures[3, 4:] = 1, 254
  data = batches.make_batches(
    pictures, 6, mask=mask, grey=np.eye(6, dtype=np.uint8)[2], reference=pictures[::-1]
  )
  rounds = 3 if name == "fsmg" else 2  # Its first one only trains.

  def moved(protection):
    state, update = protection.init(KEY, data, PARAMS), jax.jit(protection.update)
    for _ in range(rounds):
      state, _ = update(KEY, state, data, PARAMS)
    return np.asarray(state.delta[0])

  delta = moved(method)
  made = np.asarray(quantise_within(pictures, jnp.asarray(delta), 8)).astype(int)
  assert np.abs(made - pictures).max() <= 8 and np.abs(delta).max() <= 8 / 255 + 1e-7
  seen = pictures / 255 + delta
  assert seen.min() >= -1e-6 and seen.max() <= 1 + 1e-6
  assert not delta[1, :3].any() and delta[1, 3:].any()
  np.testing.assert_allclose(delta[2, ..., 0], delta[2, ..., 2], atol=1e-6)
  assert np.abs(delta).max((1, 2, 3)).min() > 0.9 / 255
  free = [0, 4, 5]  # Of a mask and of white and black.
  high, before = (bands.energy_share(x[np.array(free)], 0.7, 2.0) for x in (delta, moved(rough)))
  assert np.mean(high) < 0.1 and np.mean(high) < 0.5 * np.mean(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_delta_by_its_size_in_the_mean(kind):
  state, band = pulled_by(PARTS, kind)
  (first, *_), delta = state.variable, np.asarray(state.delta)
  level = band.levels[0]
  assert len(state.variable) == (2 if kind == "pyramid" else 1)
  # The steepest step of the variable is along the sign of what it is pulled by.
  np.testing.assert_array_equal(np.sign(first), np.sign(level.operator(jnp.asarray(PARTS))))
  for level, own in zip(band.levels, state.variable, strict=True):
    assert np.ptp(np.abs(own)) < 1e-6
    np.testing.assert_allclose(np.abs(level.operator(own)).mean(), level.share * STEP, rtol=1e-4)
  if kind != "pyramid":
    np.testing.assert_allclose(np.abs(delta).mean(), STEP, rtol=1e-4)
    np.testing.assert_allclose(delta, level.operator(first), atol=1e-6)
  else:
    total = sum(level.operator(own) for level, own in zip(band.levels, state.variable))
    np.testing.assert_allclose(delta, total, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_variable_levels_and_delta(kind):
  state, band = pulled_by(PARTS, kind, steps=12)
  for level, own in zip(band.levels, state.variable, strict=True):
    assert np.abs(own).max() <= 3 * level.share * RADIUS * (1 + 1e-5)
  assert np.abs(state.delta).max() <= RADIUS * (1 + 1e-6)
  # The budget is filled, and what was pulled moved the right way.
  assert np.sqrt(np.square(state.delta).mean()) > 0.5 * RADIUS
  assert np.vdot(state.delta, band.levels[0].operator(jnp.asarray(PARTS))) > 0


def test_a_band_of_all_frequencies_is_no_band():
  """With a reach of one radius it is projected gradient descent itself."""
  drawn = jax.random.normal(jax.random.key(2), (5, 1, 12, 16, 3))

  def objective(params, images, cond, keys):
    number = jax.random.bits(keys[0]) % 5
    return (images * drawn[number] + jnp.square(images) / 2).sum((1, 2, 3)), {}

  found = []
  for given in (Spectrum(), Spectrum("dct", band_high=2.0, band_reach=1.0)):
    constraint = constraints.linf(RADIUS, start="zero", spectrum=given)
    method = protections.pgd(objective, constraint, protections.sign_descent(STEP))
    batch = grey_batch()
    state, update = method.init(KEY, batch, None), jax.jit(method.update)
    for _ in range(9):
      state, _ = update(KEY, state, batch, None)
    found.append(np.asarray(state.delta))
  assert np.abs(found[0]).max() == pytest.approx(RADIUS)
  close = np.abs(found[0] - found[1]) < 1e-5
  assert close.mean() > 0.99  # A gradient near zero may fall on either side.


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


def test_a_diverged_gradient_shows():
  state, _ = pulled_by(jnp.asarray(PARTS).at[0, 3, 4, 1].set(jnp.nan), "gaussian")
  assert np.isnan(state.delta).any()


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


def test_other_optimisers_move_as_far_as_without_a_band():
  moves = {}
  for kind in ("", "gaussian"):
    given = KINDS.get(kind, Spectrum())
    constraint = constraints.linf(RADIUS, spectrum=given)

    def objective(params, images, cond, keys):
      return -(images * PARTS).sum((1, 2, 3)), {}

    for name, tx in (("adam", optax.adam(STEP)), ("l2", protections.l2_descent(0.3))):
      method = protections.pgd(objective, constraint, tx)
      state = method.init(KEY, grey_batch(), None)
      state, _ = method.update(KEY, state, grey_batch(), None)
      moves[kind, name] = np.abs(state.delta).mean()
  assert moves["gaussian", "adam"] == pytest.approx(moves["", "adam"], rel=1e-3)
  assert 0.5 < moves["gaussian", "l2"] / moves["", "l2"] < 1.2  # Some of it is clipped.


def test_a_perturbation_does_not_depend_on_its_batch(latent_model):
  method = build("photoguard_encoder", latent_model, **LOW)
  halves = deltas(method, 3).reshape(4, 6, 8, 8, 3)
  whole = deltas(method, 3, batches.make_batches(PICTURES, 6)).reshape(4, 6, 8, 8, 3)
  np.testing.assert_allclose(halves, whole, atol=1e-6)
  assert np.abs(whole[-1]).max() > 2 * STEP


def test_joint_steps_stay_in_the_band(gaussian_model):
  options = {"train_steps": 4, "learning_rate": 0.05, "joint_gradients": True}
  method = build("udp", gaussian_model, **options, **LOW)
  state, update = method.init(KEY, DATA, None), jax.jit(method.update)
  for _ in range(4):
    state, info = update(KEY, state, DATA, None)
  assert np.isfinite(info.loss).any() and np.abs(state.delta).max() > 2 * STEP
  made = jax.vmap(lambda own: bands.gaussian_band(own, 1.0))(state.inner.variable[0])
  images = to_float(DATA.images)
  expected = projections.box(jnp.clip(made, -RADIUS, RADIUS), images)
  np.testing.assert_allclose(state.delta, expected, atol=1e-6)


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
