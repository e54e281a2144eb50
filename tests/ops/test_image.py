"""Image operations against NumPy, SciPy and exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from udp_jax.ops import image

LEVELS = np.arange(256, dtype=np.uint8)


def _images(shape=(2, 12, 16, 3), seed=0):
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_ranges():
  x = np.array([0.0, 0.25, 1.0, 1.5], np.float32)
  np.testing.assert_array_equal(image.to_model_range(x), [-1.0, -0.5, 1.0, 2.0])
  np.testing.assert_array_equal(image.from_model_range(image.to_model_range(x)), x)
  np.testing.assert_array_equal(
    image.from_model_range(jnp.array([-3.0, 0.0, 3.0]), clip=True), [0.0, 0.5, 1.0]
  )


def test_every_level_survives_the_round_trip():
  np.testing.assert_array_equal(image.quantise(image.to_float(LEVELS)), LEVELS)
  through = image.from_model_range(image.to_model_range(image.to_float(LEVELS)))
  np.testing.assert_array_equal(image.quantise(through), LEVELS)


def test_levels_compiled_or_not_are_the_same_floats_in_range():
  plain = np.asarray(image.to_float(LEVELS))
  np.testing.assert_array_equal(jax.jit(image.to_float)(LEVELS), plain)
  np.testing.assert_allclose(plain, LEVELS / 255.0, rtol=1e-7)
  assert plain[0] == 0.0 and plain[255] == 1.0


def test_ties_are_decided_alike_compiled_or_not():
  # Means of two levels, as block means of 8-bit images often are.
  means = (LEVELS[:, None].astype(np.float32) + LEVELS) / np.float32(510)
  np.testing.assert_array_equal(jax.jit(image.quantise)(means), image.quantise(means))


def test_quantise_rounds_halves_up_and_clips():
  # 255 * 0.5 = 127.5 exactly; NumPy's own rounding would go to the even 128 as well, 2.5 would not.
  values = np.array([-0.2, 0.0, 0.5, 2.5 / 255, 1.0, 1.7, 2.49 / 255, 2.51 / 255], np.float32)
  assert np.float32(255) * values[3] == np.float32(2.5)
  np.testing.assert_array_equal(image.quantise(values), [0, 0, 128, 3, 255, 255, 2, 3])


def test_quantise_is_nearest_everywhere():
  values = _images((50_000,))
  got = np.asarray(image.quantise(values)).astype(int)
  for value, level in zip(values[:2000], got[:2000]):
    assert abs(Fraction(float(value)) * 255 - int(level)) <= Fraction(1, 2) + Fraction(1, 10**4)
  assert np.abs(values.astype(np.float64) * 255 - got).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("following", [lambda x: 1.0 - x, lambda x: 2.0 * x - 1.0])
def test_what_follows_to_float_does_not_change_its_rounding(following):
  """Compiled with optimisation, as the entry points do; tests' own setting fuses less."""
  levels = np.tile(LEVELS, 64)
  expected = np.asarray(following(image.to_float(levels)))
  through = jax.jit(lambda levels: following(image.to_float(levels)))
  snapped = jax.jit(lambda images: following(image.fake_quantise(images)))
  options = {"xla_backend_optimization_level": 3}
  for program, argument in ((through, levels), (snapped, levels / np.float32(255))):
    compiled = program.lower(argument).compile(compiler_options=options)
    np.testing.assert_array_equal(compiled(argument), expected)


def test_to_float_refuses_floats():
  with pytest.raises(TypeError, match="uint8"):
    image.to_float(np.zeros(3, np.float32))
  with pytest.raises(TypeError, match="uint8"):
    image.quantise_within(np.zeros((1, 2, 2, 3), np.float32), jnp.zeros((1, 2, 2, 3)), 8)


@pytest.mark.parametrize("radius_255", [0, 1, 7.9, 8, 8.0, np.array([0.5, 16.0], np.float32)])
def test_quantise_within_keeps_the_promise_about_the_file(radius_255):
  generator = np.random.default_rng(1)
  clean = generator.integers(0, 256, (2, 40, 40, 3), np.uint8)
  delta = generator.uniform(-20 / 255, 20 / 255, clean.shape).astype(np.float32)
  got = image.quantise_within(clean, delta, radius_255)
  assert got.dtype == jnp.uint8
  change = np.asarray(got).astype(int) - clean
  bound = np.floor(np.broadcast_to(radius_255, (2,))).astype(int)
  for i in range(2):
    assert np.abs(change[i]).max() == bound[i]
    wanted = np.clip(np.floor(255.0 * delta[i].astype(np.float64) + 0.5), -bound[i], bound[i])
    np.testing.assert_array_equal(got[i], np.clip(clean[i] + wanted, 0, 255))


def test_quantise_within_keeps_full_strength_perturbations():
  # delta = +-8/255 must become +-8 levels, never 7, wherever there is room.
  clean = np.full((1, 16, 16, 1), 128, np.uint8)
  for sign in (1, -1):
    delta = jnp.full(clean.shape, sign * 8 / 255)
    np.testing.assert_array_equal(image.quantise_within(clean, delta, 8), 128 + sign * 8)


def test_fake_quantise_has_the_values_of_the_file_and_the_gradient_of_identity():
  x = jnp.asarray(_images()) * 1.4 - 0.2
  np.testing.assert_array_equal(image.fake_quantise(x), image.to_float(image.quantise(x)))
  weights = jnp.asarray(_images(seed=1))
  gradient = jax.grad(lambda v: jnp.sum(weights * image.fake_quantise(v)))(x)
  np.testing.assert_array_equal(gradient, weights)


def test_box_resize_is_the_exact_block_mean():
  x = _images()
  got = image.resize(x, (4, 4), method="box")
  for i in range(4):
    for j in range(4):
      block = x[:, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4].astype(np.float64)
      np.testing.assert_allclose(got[:, i, j], block.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("method", ["linear", "cubic", "lanczos3", "box"])
@pytest.mark.parametrize("size", [(6, 8), (3, 4)])
def test_resize_keeps_constants_and_position(method, size):
  np.testing.assert_allclose(
    image.resize(jnp.full((1, 12, 16, 2), 0.3), size, method=method), 0.3, rtol=1e-5
  )
  # A linear ramp keeps its values at the centres of the new pixels, away from the borders.
  ramp = np.broadcast_to(((np.arange(16) + 0.5) / 16)[None, None, :, None], (1, 12, 16, 1))
  got = image.resize(jnp.asarray(ramp, jnp.float32), size, method=method)
  w = size[1]
  inner = slice(w // 4, w - w // 4)
  centres = (np.arange(w) + 0.5) / w
  np.testing.assert_allclose(got[0, 0, inner, 0], centres[inner], atol=0.02)


def test_resize_antialiases():
  stripes = np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), 8)[None, None, :, None]
  stripes = np.broadcast_to(stripes, (1, 32, 32, 1))
  got = np.asarray(image.resize(stripes, (8, 8), method="linear"))
  np.testing.assert_allclose(got[:, :, 1:-1], 0.25, atol=0.1)


def test_resize_rejects_bad_requests_and_passes_equal_sizes():
  x = jnp.asarray(_images())
  np.testing.assert_array_equal(image.resize(x, (12, 16)), x)
  with pytest.raises(ValueError, match="area"):
    image.resize(x, (6, 8), method="area")
  with pytest.raises(ValueError, match="whole factors"):
    image.resize(x, (5, 8), method="box")


@pytest.mark.parametrize("sigma,kernel_size", [(0.8, None), (1.5, None), (1.0, 5), (2.0, 3)])
def test_blur_matches_scipy_per_channel(sigma, kernel_size):
  x = _images()
  reach = (kernel_size or 2 * int(np.ceil(3 * sigma)) + 1) // 2
  expected = scipy.ndimage.gaussian_filter(
    x.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, reach, reach, 0)
  )
  got = image.gaussian_blur(jnp.asarray(x), sigma, kernel_size=kernel_size)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_blur_gradient_is_the_adjoint():
  # For a linear map L: <u, L v> = <L^T u, v>.
  u, v = (jnp.asarray(_images(seed=s)) for s in (2, 3))
  blur = lambda x: image.gaussian_blur(x, 1.2)
  adjoint = jax.grad(lambda x: jnp.vdot(u, blur(x)))(jnp.zeros_like(v))
  np.testing.assert_allclose(jnp.vdot(u, blur(v)), jnp.vdot(adjoint, v), rtol=1e-5)


def test_blur_with_traced_sigma():
  x = jnp.asarray(_images())
  got = jax.jit(lambda s: image.gaussian_blur(x, s, kernel_size=7))(1.1)
  np.testing.assert_allclose(got, image.gaussian_blur(x, 1.1, kernel_size=7), rtol=1e-5)


@pytest.mark.parametrize(
  "sigma,kernel_size,message",
  [(0.0, None, "sigma"), (-1.0, 3, "sigma"), (1.0, 4, "odd"), (1.0, 25, "fit")],
)
def test_blur_rejects(sigma, kernel_size, message):
  with pytest.raises(ValueError, match=message):
    image.gaussian_blur(jnp.asarray(_images()), sigma, kernel_size=kernel_size)


@pytest.mark.parametrize("count,columns", [(6, 3), (5, 3), (2, 4), (1, 1)])
def test_grid(count, columns):
  tiles = np.random.default_rng(4).integers(0, 256, (count, 4, 5, 3), np.uint8)
  got = np.asarray(image.grid(tiles, columns, fill=9))
  rows = -(-count // columns)
  assert got.dtype == np.uint8 and got.shape == (4 * rows, 5 * columns, 3)
  for n in range(rows * columns):
    r, c = divmod(n, columns)
    cell = got[4 * r : 4 * r + 4, 5 * c : 5 * c + 5]
    np.testing.assert_array_equal(cell, tiles[n] if n < count else np.full_like(tiles[0], 9))
  with pytest.raises(ValueError, match="columns"):
    image.grid(tiles, 0)


def test_blur_matrix_is_gaussian_blur() -> None:
  """Each picture with its own sigma, and SciPy's filter with mirrored borders."""
  pictures = np.random.default_rng(0).normal(size=(3, 20, 15, 2)).astype(np.float32)
  sigmas = jnp.array([0.4, 1.7, 3.0])
  rows, columns = (image.blur_matrix(size, sigmas, reach=9) for size in (20, 15))
  found = jnp.einsum("bij,bjkc,blk->bilc", rows, pictures, columns, precision="highest")
  for number, sigma in enumerate(sigmas.tolist()):
    one = image.gaussian_blur(jnp.asarray(pictures[number : number + 1]), sigma, kernel_size=19)
    np.testing.assert_allclose(found[number], one[0], atol=1e-5)
    by_scipy = scipy.ndimage.gaussian_filter(
      pictures[number], (sigma, sigma, 0), mode="mirror", radius=(9, 9, 0)
    )
    np.testing.assert_allclose(found[number], by_scipy, atol=1e-4)
  slope = jax.grad(lambda s: jnp.square(image.blur_matrix(20, s)).sum())(sigmas)
  assert np.isfinite(slope).all() and (np.asarray(slope) < 0).all()


def test_blur_matrix_of_a_short_axis() -> None:
  """Taps beyond the mirrored axis are left out; rows still add up to 1."""
  for size in (1, 2, 3):
    made = image.blur_matrix(size, jnp.array([5.0]))
    np.testing.assert_allclose(made.sum(-1), 1.0, rtol=1e-6)
