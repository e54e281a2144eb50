"""Methods through an encoder, step by step on an autoencoder of averages whose gradients are known.

Pictures are mid-tones and budgets small, so that nothing is clipped at black or white.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import lookup, objectives, objectives_latent, training
from udp_jax.errors import ConfigError
from udp_jax.models import perceptual
from udp_jax.ops.image import to_float
from udp_jax.protections import adaptive, targets
from udp_jax.randomness import example_keys, stream
from udp_jax.threats.img2img import img2img

KEY = jax.random.key(6)
PICTURES = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3)).astype(np.uint8)
PARAMS = {"mean": jnp.zeros((4, 4, 3)), "log_spread": jnp.full((3,), -1.0)}
DATA = training.make_batches(PICTURES, 3)
STEP, RADIUS = 1 / 255, 6 / 255


def build(name, model, **options):
  constructor = lookup.constructor("udp_jax.protections", name)
  return constructor(model, **{"radius": RADIUS, "step_size": STEP} | options)


def deltas(protection, rounds, data=DATA):
  """Delta after every round, from the start on: (rounds + 1, num_batches, B, H, W, C)."""
  state, update = jax.jit(protection.init)(KEY, data, PARAMS), jax.jit(protection.update)
  found = [np.asarray(state.delta)]
  for _ in range(rounds):
    state, _ = update(KEY, state, data, PARAMS)
    found.append(np.asarray(state.delta))
  return np.stack(found)


def blocks(pixels):
  """Means of 2x2 pixels, repeated."""
  shape = pixels.shape
  cells = pixels.reshape(*shape[:-3], 4, 2, 4, 2, 3).mean((-4, -2), keepdims=True)
  return np.broadcast_to(cells, (*shape[:-3], 4, 2, 4, 2, 3)).reshape(shape)


# ---- PhotoGuard ----


@pytest.mark.parametrize("target", ["zero", "pattern"])
def test_photoguard_encoder_walks_to_the_target(target, latent_model):
  options = {"target": target, "start": "zero", "decay_steps": 0}
  found = deltas(build("photoguard_encoder", latent_model, **options), 3)
  picture = targets.picture(target, (8, 8, 3))
  picture = np.full((8, 8, 3), 0.5) if picture is None else picture
  # Latents of zero are those of grey. Nothing is drawn: every step is the same.
  away = blocks(DATA.images / 255) - blocks(picture)
  # Who is there already turns back.
  far = np.abs(away) > 3 * STEP
  assert far.mean() > 0.8
  for step in range(4):
    walked = -step * STEP * np.sign(away)
    np.testing.assert_allclose(found[step][far], walked[far], atol=1e-6)


def test_photoguard_encoder_steps_shrink_to_a_hundredth(latent_model):
  protection = build("photoguard_encoder", latent_model, start="zero", decay_steps=4)
  lengths = np.abs(np.diff(deltas(protection, 6), axis=0)).max((1, 2, 3, 4, 5)) / STEP
  np.testing.assert_allclose(lengths, [1, 0.7525, 0.505, 0.2575, 0.01, 0.01], rtol=1e-3)
  constant = build("photoguard_encoder", latent_model, start="zero", decay_steps=0)
  lengths = np.abs(np.diff(deltas(constant, 3), axis=0)).max((1, 2, 3, 4, 5)) / STEP
  np.testing.assert_allclose(lengths, 1, rtol=1e-4)


def test_photoguard_encoder_away_goes_on_where_it_started(latent_model):
  found = deltas(build("photoguard_encoder", latent_model, target="away"), 2)
  start = blocks(found[0])
  np.testing.assert_allclose(
    np.diff(found, axis=0)[0],
    np.clip(found[0] + STEP * np.sign(start), -RADIUS, RADIUS) - found[0],
    atol=1e-6,
  )
  assert np.abs(blocks(found[2])).mean() > np.abs(start).mean()


IN_A_BALL = {"l2_radius": 0.2, "step_size": 0.08, "num_draws": 2, "radius": 1.0}


def test_photoguard_diffusion_in_an_l2_ball(latent_model):
  found = deltas(build("photoguard_diffusion", latent_model, **IN_A_BALL), 4)
  norms = np.sqrt(np.square(found).sum((3, 4, 5)))
  np.testing.assert_allclose(norms[1], 0.08, rtol=1e-4)
  assert norms.max() <= 0.2 * (1 + 1e-6) and norms[4].min() > 0.15


@pytest.mark.slow
def test_both_budgets_of_photoguard_diffusion_hold(latent_model):
  options = IN_A_BALL | {"radius": 0.005}
  tight = deltas(build("photoguard_diffusion", latent_model, **options), 4)
  assert (
    np.abs(tight).max() <= 0.005 + 1e-7 and np.sqrt(np.square(tight).sum((3, 4, 5))).max() < 0.1
  )


def test_photoguard_diffusion_makes_edits_grey(latent_model):
  # One step from next to no noise: the edit is nearly the picture.
  found = deltas(build("photoguard_diffusion", latent_model, num_draws=1, strength=0.25), 6)
  direction = -np.sign(blocks(DATA.images / 255) - 0.5)
  far = np.abs(blocks(DATA.images / 255) - 0.5) > 0.1
  assert (np.sign(found[-1]) == direction)[far].mean() > 0.9
  with pytest.raises(ConfigError, match="drives pictures, not latents"):
    build("photoguard_diffusion", latent_model, target="zero")


# ---- Glaze ----


def test_glaze_is_adam_within_the_radius(latent_model):
  found = deltas(build("glaze", latent_model, perceptual="", target="pattern"), 8)
  assert np.abs(found[0]).max() <= RADIUS and np.abs(found[0]).std() > 0.2 * RADIUS
  direction = -np.sign(blocks(DATA.images / 255) - blocks(targets.picture("pattern", (8, 8, 3))))
  # The drawn latents (0.05) hardly ever turn a distance of 0.2 and more.
  first = np.clip(found[0] + STEP * direction, -RADIUS, RADIUS)
  assert (np.abs(found[1] - first) < 1e-5).mean() > 0.9
  assert np.abs(found).max() <= RADIUS + 1e-7
  assert np.sign(found[-1] * direction).mean() > 0.8


def test_glaze_towards_a_picture_of_ones_own(latent_model):
  reference = np.clip(PICTURES.astype(int) + np.array([90, -90] * 3)[:, None, None, None], 0, 255)
  data = training.make_batches(PICTURES, 3, reference=reference.astype(np.uint8))
  protection = build("glaze", latent_model, perceptual="", target="reference")
  assert (
    protection.needs_reference and not build("glaze", latent_model, perceptual="").needs_reference
  )
  mean = training.unbatch(deltas(protection, 12, data)[-1], 6).mean((1, 2, 3))
  np.testing.assert_array_equal(np.sign(mean), [1, -1] * 3)


STYLE = {"target": "style_transfer", "style_ids": (1, 2), "guidance_scale": 1.0, "perceptual": ""}


def test_glaze_towards_the_picture_in_another_style(latent_model):
  """Pictures as img2img makes them, and then as if they had been given."""
  protection = build("glaze", latent_model, **STYLE, sample_steps=10)
  state = jax.jit(protection.init)(KEY, DATA, PARAMS)
  assert state.style.shape == DATA.images.shape and state.style.dtype == jnp.uint8
  edit = img2img(latent_model, strength=0.4, sample_steps=10, scheduler=targets.SCHEDULER)
  apply = jax.jit(edit.apply)
  cond = np.ones((1, 2), np.int32)
  for number, ids in enumerate(DATA.ids):
    keys = example_keys(stream(KEY, "style"), 0, ids)
    edited = apply(keys, PARAMS, to_float(DATA.images[number]), cond, cond)
    np.testing.assert_allclose(state.style[number], 255 * np.asarray(edited), atol=0.51)
  # Nearer to what the model knows, which is grey.
  clean, styled = (np.abs(p.astype(float) - 127.5).mean() for p in (DATA.images, state.style))
  assert styled < 0.9 * clean and not protection.needs_reference

  given = training.make_batches(PICTURES, 3, reference=training.unbatch(state.style, 6))
  reference = build("glaze", latent_model, perceptual="", target="reference")
  np.testing.assert_allclose(deltas(protection, 4)[-1], deltas(reference, 4, given)[-1], atol=1e-6)


def test_a_style_needs_a_prompt(latent_model):
  for lacking in ({"style_ids": None}, {"guidance_scale": 7.5}):
    with pytest.raises(ConfigError, match="'style_transfer' needs style_prompt"):
      build("glaze", latent_model, **STYLE | lacking)
  with pytest.raises(ConfigError, match="strength"):
    build("glaze", latent_model, **STYLE, sample_steps=10, strength=0.0)


def test_glaze_is_held_back_by_what_can_be_seen(latent_model, monkeypatch):
  def distance(params, x, y):
    return jnp.square(x - y).mean((1, 2, 3)) * 255**2

  stub = perceptual.PerceptualDistance("stub", "Stub", {}, distance, 8, "")
  monkeypatch.setattr(perceptual, "load", lambda name, weights=None: stub)
  free = np.abs(deltas(build("glaze", latent_model, perceptual_budget=1e6), 12)[-1])
  held = np.abs(deltas(build("glaze", latent_model, perceptual_budget=4.0), 12)[-1])
  rms = np.sqrt(np.square(255 * held).mean((2, 3, 4)))
  assert rms.max() < 2.7 and np.sqrt(np.square(255 * free).mean((2, 3, 4))).min() > 4
  large = stub._replace(min_size=9)
  monkeypatch.setattr(perceptual, "load", lambda name, weights=None: large)
  with pytest.raises(ConfigError, match="stub needs pictures of 9 pixels and more"):
    build("glaze", latent_model)


# ---- Mist and SDS ----


def test_mist_is_the_sum_of_its_two_kinds(latent_model):
  def moves(**options):
    return np.diff(deltas(build("mist", latent_model, start="zero", **options), 1), axis=0)[0]

  textural = moves(kind="textural")
  fused = {rate: moves(kind="fused", rate=rate) for rate in (0.0, 1e9)}
  np.testing.assert_array_equal(fused[0.0] != 0, textural != 0)
  # Latents are drawn with other keys, which turns those that are near the target.
  assert (np.sign(fused[0.0]) == np.sign(textural)).mean() > 0.85
  assert (np.sign(fused[1e9]) != np.sign(textural)).mean() > 0.2
  with pytest.raises(ConfigError, match="mist: unknown kind 'both'; known: semantic, textural"):
    build("mist", latent_model, kind="both")


def test_semantic_mist_is_advdm(latent_model):
  mist = deltas(build("mist", latent_model, kind="semantic"), 2)
  np.testing.assert_array_equal(mist, deltas(build("advdm", latent_model), 2))


def test_sds_plus_and_minus_are_opposite(latent_model):
  plus = deltas(build("sds", latent_model, direction="plus"), 1)[1]
  minus = deltas(build("sds", latent_model), 1)[1]
  np.testing.assert_allclose(plus, -minus, atol=1e-7)
  np.testing.assert_allclose(np.abs(plus), STEP, atol=1e-6)
  with pytest.raises(ConfigError, match="sds: unknown direction 'up'; known: minus, plus"):
    build("sds", latent_model, direction="up")


def test_sds_runs_on_pixels_and_its_target_does_not(gaussian_model):
  build("sds", gaussian_model)
  with pytest.raises(ConfigError, match="sds with a target needs a latent diffusion model"):
    build("sds", gaussian_model, target="pattern")


def test_sdst_also_walks_to_the_target(latent_model):
  direction = -np.sign(blocks(DATA.images / 255) - blocks(targets.picture("pattern", (8, 8, 3))))

  def agreement(rate):
    options = {"target": "pattern", "rate": rate}
    return np.mean(np.sign(deltas(build("sds", latent_model, **options), 4)[-1]) == direction)

  assert agreement(0.0) > 0.85 > 0.7 > agreement(1e6)


# ---- adaptive forms ----


def test_consistency_leaves_a_picture_that_the_autoencoder_gives_back(latent_model):
  """With a large weight, what averages lose goes out of the protected picture."""

  def lost(delta):
    moved = np.asarray(to_float(DATA.images)) + delta
    return np.square(moved - blocks(moved)).mean()

  options = {"target": "grey", "start": "zero"}
  plain = deltas(build("photoguard_encoder", latent_model, **options), 6)
  options |= {"consistency_weight": 1e4}
  consistent = deltas(build("photoguard_encoder", latent_model, **options), 6)
  np.testing.assert_allclose(lost(plain[-1]), lost(plain[0]), rtol=1e-4)
  assert lost(consistent[-1]) < 0.9 * lost(plain[0])


@pytest.mark.slow  # The parts: test_adaptive.py, and `over_transforms` in tests/test_objectives.py.
def test_what_is_expected_survives_what_is_expected(latent_model):
  """Delta that expects transforms keeps more of its effect under them than one that does not."""
  options, names = {"target": "pattern", "start": "zero"}, "blur,resize"
  plain = deltas(build("photoguard_encoder", latent_model, **options), 6)[-1]
  options |= {"transforms": names}
  expecting = deltas(build("photoguard_encoder", latent_model, **options), 6)[-1]
  picture = targets.picture("pattern", (8, 8, 3))
  distance = objectives_latent.latent_distance(latent_model, picture)
  expected = objectives.over_transforms(distance, adaptive.parse(names), 30)
  keys = example_keys(jax.random.key(99), 0, DATA.ids.reshape(-1))

  @jax.jit
  def left(delta):
    moved = (DATA.images / np.float32(255) + delta).reshape(-1, 8, 8, 3)
    return jnp.mean(expected(PARAMS, moved, None, keys)[0])

  clean = left(np.zeros_like(plain))
  assert left(expecting) < left(plain) < clean
