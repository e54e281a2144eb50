"""The differentiable codec against libjpeg, as Pillow runs it."""

from __future__ import annotations

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from udp_jax.ops import jpeg


@pytest.fixture(scope="module")
def photograph():
  return skimage.data.astronaut()[40:136, 170:282]


def through_pillow(pixels, quality, chroma_subsampling):
  buffer = io.BytesIO()
  subsampling = "4:2:0" if chroma_subsampling else "4:4:4"
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
  image = Image.open(buffer)
  return np.asarray(image).astype(float), image.quantization


def psnr(a, b):
  return 10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-9))


def run(pixels, quality, **options):
  images = jnp.asarray(pixels[None] / 255, jnp.float32)
  return 255 * np.asarray(jax.jit(lambda x: jpeg.jpeg(x, quality, **options))(images))[0]


@pytest.mark.parametrize("quality", [5, 25, 49, 50, 75, 90, 100])
def test_tables_are_libjpegs(photograph, quality):
  _, tables = through_pillow(photograph[:8, :8], quality, True)
  for ours, theirs in zip(jpeg.quantisation_tables(quality), (tables[0], tables[1])):
    np.testing.assert_array_equal(ours, np.reshape(theirs, (8, 8)))


@pytest.mark.parametrize("chroma_subsampling", [True, False])
@pytest.mark.parametrize("size", [(96, 112), (61, 75), (17, 33), (1, 5)])
def test_matches_libjpeg(photograph, size, chroma_subsampling):
  """Far closer to the codec's result than that is to the picture; sizes of no whole blocks too."""
  crop = photograph[: size[0], : size[1]]
  qualities = (10, 50, 75, 95)
  repeated = jnp.repeat(jnp.asarray(crop[None] / 255, jnp.float32), len(qualities), axis=0)
  compress = jax.jit(partial(jpeg.jpeg, chroma_subsampling=chroma_subsampling))
  got = compress(repeated, jnp.asarray(qualities))
  for quality, one in zip(qualities, np.asarray(got)):
    expected, _ = through_pillow(crop, quality, chroma_subsampling)
    assert psnr(255 * one, expected) > 46.0
    if quality <= 75 and min(size) > 8:
      assert psnr(255 * one, expected) > psnr(crop, expected) + 12.0


def test_values_are_levels_compiled_or_not(photograph):
  got = run(photograph, 50)
  plain = 255 * jpeg.jpeg(jnp.asarray(photograph[None] / 255, jnp.float32), 50)[0]
  # A coefficient next to a half may be rounded the other way.
  assert np.mean(np.abs(got - plain) > 1e-3) < 0.01
  np.testing.assert_allclose(plain, np.round(plain), atol=1e-3)
  np.testing.assert_allclose(got, np.round(got), atol=1e-3)
  assert got.min() >= 0 and got.max() <= 255


def test_without_rounding_it_is_the_identity(photograph):
  """The colour transform, the cosine transform and their inverses fit together."""
  got = run(photograph, 50, chroma_subsampling=False, rounding="none")
  np.testing.assert_allclose(got, photograph, atol=1e-2)
  grey = np.repeat(photograph[..., :1], 3, axis=2)  # Without chroma, subsampling loses nothing.
  np.testing.assert_allclose(run(grey, 50, rounding="none"), grey, atol=1e-2)


def test_cubic_rounding_is_near_the_codec_and_smooth(photograph):
  expected, _ = through_pillow(photograph, 60, True)
  assert psnr(run(photograph, 60, rounding="cubic"), expected) > psnr(photograph, expected) + 3.0


@pytest.mark.parametrize("rounding", ["straight_through", "cubic"])
def test_gradient_reaches_the_pixels(photograph, rounding):
  """Descending the gradient brings the compressed picture nearer to a target."""
  images = jnp.asarray(photograph[None, :32, :32] / 255, jnp.float32)
  target = jnp.clip(images + 0.1, 0.0, 1.0)

  @jax.jit
  def step(x):
    loss = lambda x: jnp.mean((jpeg.jpeg(x, 75, rounding=rounding) - target) ** 2)
    value, gradient = jax.value_and_grad(loss)(x)
    return x - 500.0 * gradient, value, gradient

  x, losses = images, []
  for _ in range(10):
    x, value, gradient = step(x)
    assert np.isfinite(gradient).all()
    losses.append(float(value))
  # The slope of cubic rounding is between 0 and 3/4: it descends more slowly.
  assert losses[-1] < (0.2 if rounding == "straight_through" else 0.5) * losses[0]


def test_straight_through_gradient_of_the_transforms(photograph):
  """Where nothing is clipped, it is the gradient of the transforms without rounding."""
  images = jnp.asarray(0.25 + 0.5 * photograph[None, :24, :40] / 255, jnp.float32)
  weights = jax.random.normal(jax.random.key(0), images.shape)
  gradients = [
    jax.jit(jax.grad(lambda x, r=rounding: jnp.sum(weights * jpeg.jpeg(x, 90, rounding=r))))(images)
    for rounding in ("straight_through", "none")
  ]
  np.testing.assert_allclose(*gradients, atol=1e-3)


def test_bad_arguments():
  with pytest.raises(ValueError, match="rounding 'hard' is not one of"):
    jpeg.jpeg(jnp.zeros((1, 8, 8, 3)), 50, rounding="hard")
  with pytest.raises(ValueError, match=r"images \(B, H, W, 3\)"):
    jpeg.jpeg(jnp.zeros((1, 8, 8, 1)), 50)
