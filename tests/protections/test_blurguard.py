"""BlurGuard: its blurs by SciPy, its spectra and a step by NumPy, and the sigmas that it finds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tests.protections.rounds import DATA, KEY, PARAMS, PICTURES, RADIUS, STEP, build, deltas
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.ops.image import quantise_within, to_float
from udp_jax.protections import blurguard

# Two regions: columns to the left, to the right.
HALVES = np.broadcast_to(np.arange(8)[None] >= 3, (8, 8)).astype(np.int32)


def blurred(picture, sigma, reach=7):
  size = (reach, reach, 0)
  return ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="mirror", radius=size)


def test_each_region_has_its_own_blur():
  pictures = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
  sigmas = np.array([[0.5, 2.0], [3.0, 1.0]])
  found = blurguard.by_segment(
    jnp.asarray(pictures, jnp.float32),
    jnp.asarray(np.stack([HALVES, 1 - HALVES])),
    jnp.asarray(sigmas, jnp.float32),
  )
  for number, labels in enumerate((HALVES, 1 - HALVES)):
    both = [blurred(pictures[number], sigma) for sigma in sigmas[number]]
    expected = np.where(labels[..., None] == 0, *both)
    np.testing.assert_allclose(found[number], expected, atol=1e-5)


def test_the_spectrum_by_numpy():
  pictures = np.random.default_rng(0).uniform(size=(2, 8, 12, 3))
  found = np.asarray(blurguard.spectrum(jnp.asarray(pictures, jnp.float32)))
  expected = np.zeros_like(found)
  for y in range(8):
    for x in range(12):
      waves = np.exp(-2j * np.pi * (np.arange(8)[:, None] * y / 8 + np.arange(12)[None] * x / 12))
      power = np.square(np.abs((pictures * waves[None, ..., None]).sum((1, 2)))).sum(-1)
      radius = round(np.hypot(min(y, 8 - y), min(x, 12 - x)))
      expected[:, radius] += power
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(found.sum(1), 96 * np.square(pictures).sum((1, 2, 3)), rtol=1e-4)


def test_a_step_by_numpy(latent_model):
  """The first step from 0: the blurs' transpose on the gradient of the mean squared latents."""
  model = latent_model._replace(encode=lambda p, x, k: latent_model.encode(p, x, None))
  method = build("blurguard", model, segments=HALVES, decay_steps=4)
  state = jax.jit(method.init)(KEY, DATA, PARAMS)
  after, info = jax.jit(method.update)(KEY, state, DATA, PARAMS)
  unit = np.eye(64).reshape(64, 8, 8)
  for place in np.ndindex(2, 3):
    z = 2 * (DATA.images[place] / 255).reshape(4, 2, 4, 2, 3).mean((1, 3)) - 1
    np.testing.assert_allclose(info.loss[place], np.square(z).mean(), rtol=1e-4)
    # d mean z^2 / d pixel: 2 z / 48 * 2 / 4 for each pixel of a block.
    gradient = np.repeat(np.repeat(z, 2, axis=0), 2, axis=1) / 48
    sigmas = np.exp(np.asarray(state.log_sigmas[place]))
    made = [np.stack([blurred(u[..., None], s)[..., 0] for u in unit]) for s in sigmas]
    operator = np.where(HALVES[None] == 0, *made).reshape(64, 64)  # (from, to)
    slope = (operator @ gradient.reshape(64, 3)).reshape(8, 8, 3)
    step = -STEP * np.sqrt(192) * slope / np.linalg.norm(slope)
    np.testing.assert_allclose(after.variable[place], step, atol=2e-6)
    expected = np.einsum("fc,ft->tc", step.reshape(64, 3), operator).reshape(8, 8, 3)
    assert np.abs(expected).max() < RADIUS  # Nothing is clipped yet.
    np.testing.assert_allclose(after.delta[place], expected, atol=2e-6)


def test_steps_shrink_as_published(latent_model):
  method = build("blurguard", latent_model, decay_steps=4, sigma_steps=0)
  state, update, lengths = jax.jit(method.init)(KEY, DATA, PARAMS), jax.jit(method.update), []
  for _ in range(5):
    after, _ = update(KEY, state, DATA, PARAMS)
    lengths.append(np.sqrt(np.square(after.variable - state.variable).mean((2, 3, 4))) / STEP)
    state = after
  last = 0.01 / 0.67
  expected = [1 - (1 - last) * number / 4 for number in range(5)]
  np.testing.assert_allclose(np.stack(lengths).max((1, 2)), expected, rtol=2e-3)
  # 1.34 on [-1, 1] for 512x512x3.
  assert abs(1.34 / np.sqrt(512 * 512 * 3) * 127.5 - 0.193) < 1e-3


def test_sigmas_grow_where_noise_would_be_seen(latent_model):
  """A smooth picture needs more blur than one of noise, whose spectrum noise hardly moves."""
  y, x = np.mgrid[:8, :8]
  smooth = np.repeat((100 + 4 * y + 3 * x)[..., None], 3, -1)
  noisy = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
  data = batches.make_batches(np.stack([smooth, noisy]).astype(np.uint8), 2)
  method = build("blurguard", latent_model, num_segments=1)
  state = jax.jit(method.init)(KEY, data, PARAMS)
  found = np.exp(np.asarray(state.log_sigmas))[0, :, 0]
  assert found[0] > 1.2 * found[1] and found[0] > 2
  at_once = build("blurguard", latent_model, num_segments=1, sigma_steps=0)
  assert not np.asarray(jax.jit(at_once.init)(KEY, data, PARAMS).log_sigmas).any()
  enough = build("blurguard", latent_model, num_segments=1, spectrum_budget=100.0)
  assert not np.asarray(jax.jit(enough.init)(KEY, data, PARAMS).log_sigmas).any()


def test_given_labels_belong_to_pictures(latent_model):
  each = np.stack([np.full((8, 8), number) for number in range(6)])
  state = jax.jit(build("blurguard", latent_model, segments=each, sigma_steps=1).init)(
    KEY, DATA, PARAMS
  )
  assert state.segments.shape == (2, 3, 8, 8) and state.log_sigmas.shape == (2, 3, 6)
  assert np.asarray(state.segments)[..., 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
  for wrong in (HALVES[:4], HALVES - 1, HALVES / 2, np.zeros(3, int)):
    with pytest.raises(ConfigError, match="blurguard: segments are whole numbers from 0 on, "):
      build("blurguard", latent_model, segments=wrong)
  with pytest.raises(ConfigError, match="num_segments is 0 and sigma_steps 50: at least 1, and 0"):
    build("blurguard", latent_model, num_segments=0)


def test_the_saved_files_go_to_grey_within_the_budget_and_the_mask(latent_model):
  bright = PICTURES // 2 + 120  # Far from grey, all over.
  mask = np.repeat(HALVES[None, ..., None], 6, axis=0).astype(np.uint8)
  data = batches.make_batches(bright, 3, mask=mask, grey=np.arange(6) % 2)
  found = deltas(build("blurguard", latent_model, decay_steps=0), 10, data)
  delta, early = (found[number].reshape(bright.shape) for number in (-1, 2))
  saved = np.asarray(quantise_within(bright, jnp.asarray(delta), 6))
  moved = saved.astype(int) - bright
  assert 3 <= np.abs(moved).max() <= 6 and not moved[:, :, :3].any()
  assert (early[1::2] == early[1::2, ..., :1]).all() and (early[::2] != early[::2, ..., :1]).any()

  def power(pictures):
    return np.square(np.asarray(latent_model.encode(None, to_float(pictures), None))).mean(
      (1, 2, 3)
    )

  assert (power(saved) < power(bright)).all()
