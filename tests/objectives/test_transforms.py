"""Transforms of pictures against Pillow and NumPy, and the expectation over them."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.objectives.by_hand import KEYS, PARAMS, PROBS, brightness, darker, linear_model
from udp_jax.errors import ConfigError
from udp_jax.objectives import transforms
from udp_jax.objectives.denoising import denoising
from udp_jax.objectives.transforms import over_transforms
from udp_jax.ops.keys import example_keys

FOUR = jax.random.split(jax.random.key(1), 4)


@pytest.fixture(scope="module")
def waves() -> jax.Array:
  """Four smooth pictures (4, 16, 16, 3) on the 8-bit grid, in [0, 1]."""
  y, x, c = np.mgrid[:16, :16, :3]
  made = [np.sin(0.2 * (n + 1) * x + 0.3 * y + c) for n in range(4)]
  return jnp.asarray(np.round(128 + 90 * np.stack(made)) / 255, jnp.float32)


def test_jpeg_is_between_the_codec_s_qualities(waves: jax.Array) -> None:
  def through_pillow(quality: int) -> np.ndarray:
    made = []
    for image in np.round(255 * np.asarray(waves)).astype(np.uint8):
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "JPEG", quality=quality)
      made.append(np.asarray(Image.open(buffer)) / 255)
    return np.stack(made)

  found = np.asarray(jax.jit(transforms.TRANSFORMS["jpeg"])(FOUR, waves))
  low, high = (through_pillow(int(quality)) for quality in transforms.QUALITIES)
  error, least, most = (np.abs(x - np.asarray(waves)).mean() for x in (found, high, low))
  assert 0.5 * least < error < 1.5 * most


def test_noise_has_a_level_of_its_own_for_every_picture() -> None:
  grey = jnp.full((4, 64, 64, 3), 0.5)
  found = np.asarray(transforms.TRANSFORMS["noise"](FOUR, grey)) - 0.5
  spreads = found.std((1, 2, 3))
  low, high = transforms.NOISES
  assert (spreads > low).all() and (spreads < 1.05 * high).all() and len(set(spreads)) == 4
  np.testing.assert_allclose(found.mean((1, 2, 3)), 0.0, atol=5 * high / 64)


def test_blur_keeps_the_mean_and_lowers_the_contrast() -> None:
  sharp = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 24, 24, 3)), jnp.float32)
  found = np.asarray(jax.jit(transforms.TRANSFORMS["blur"])(FOUR, sharp))
  np.testing.assert_allclose(found.mean((1, 2, 3)), sharp.mean((1, 2, 3)), atol=0.02)
  assert (found.std((1, 2, 3)) < np.asarray(sharp).std((1, 2, 3))).all()


def test_names() -> None:
  both = transforms.parse(" jpeg , blur")
  assert both == (transforms.TRANSFORMS["jpeg"], transforms.TRANSFORMS["blur"])
  for wrong in ("jpeg,sharpen", ""):
    with pytest.raises(ConfigError, match="unknown transform .*; known: identity, jpeg, resize"):
      transforms.parse(wrong)


def test_the_identity_alone_changes_nothing(images):
  plain = denoising(linear_model(), PROBS)
  expected = over_transforms(plain, [lambda keys, images: images])
  for got, wanted in zip(
    jax.jit(expected)(PARAMS, images, None, KEYS),
    jax.jit(plain)(PARAMS, images, None, KEYS),
    strict=True,
  ):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_every_picture_gets_a_transform_by_its_own_key(images):
  black, white = (lambda keys, x, level=level: jnp.full_like(x, level) for level in (0.0, 1.0))
  keys = example_keys(jax.random.key(1), 0, np.arange(300))
  many = np.repeat(images[:1], 300, axis=0)
  objective = over_transforms(brightness, [black, darker, white])
  run = jax.jit(objective)
  losses = np.asarray(run(None, many, None, keys)[0])
  counts = [(losses == 0).sum(), ((losses > 0) & (losses < 1)).sum(), (losses == 1).sum()]
  assert sum(counts) == 300 and np.abs(np.array(counts) - 100).max() < 5 * np.sqrt(300 * 2 / 9)
  few = run(None, many[:5], None, keys[:5])[0]
  np.testing.assert_allclose(few, losses[:5], rtol=1e-6)


def test_transforms_are_differentiated_through(images):
  objective = over_transforms(brightness, [darker])
  found = jax.jit(jax.grad(lambda x: objective(None, x, None, KEYS)[0].sum()))(images)
  # Brightness is linear: what a pixel weighs is the factor of its picture.
  factor = jax.jit(objective)(None, np.ones_like(images), None, KEYS)[0]
  np.testing.assert_allclose(found[:, :, 0].sum((1, 2)), factor, rtol=1e-5)
  assert factor.min() > 0 and factor.std() > 0.05


def test_draws_are_averaged(images):
  objective = over_transforms(brightness, [darker], 400)
  losses, _ = jax.jit(objective)(None, images, None, KEYS)
  plain = images[:, :, 0].mean((1, 2))
  # The mean of 400 uniform factors is 1/2, give or take five of its deviations.
  assert np.abs(losses / plain - 0.5).max() < 5 * np.sqrt(1 / 12 / 400)
  one = jax.jit(over_transforms(brightness, [darker]))(None, images, None, KEYS)[0]
  assert np.abs(one / plain - 0.5).max() > 0.1
