"""Networks on pictures larger than a window: what they give on the whole picture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.models import large_pictures
from udp_jax.models.large_pictures import Windows
from udp_jax.ops.conv import conv2d


def pictures(height, width, count=2):
  return jax.random.uniform(jax.random.key(1), (count, height, width, 3))


@pytest.mark.parametrize("size", [(50, 41), (9, 70), (24, 25), (24, 24)])
def test_a_network_that_sees_no_farther_than_the_context(size):
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 3)) / 5

  def network(x):  # Zeros at the borders, which windows must not have elsewhere.
    return conv2d(jnp.tanh(conv2d(x, kernel)), kernel)

  images = pictures(*size)
  got = jax.jit(lambda x: large_pictures.apply(network, x, Windows(24, 2, 4)))(images)
  np.testing.assert_allclose(got, network(images), atol=1e-5)


@pytest.mark.parametrize("size", [(50, 42), (42, 24)])
def test_blocks_of_pixels_are_the_same_everywhere(size):
  def network(x):
    b, h, w, c = x.shape
    means = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4), keepdims=True)
    return jnp.broadcast_to(means, (b, h // 2, 2, w // 2, 2, c)).reshape(x.shape)

  images = pictures(*size)
  got = large_pictures.apply(network, images, Windows(24, 3, 4, multiple=2))
  np.testing.assert_allclose(got, network(images), atol=1e-6)
  # The check can fail: windows at odd places cut blocks.
  odd = large_pictures.apply(network, images, Windows(24, 3, 4))
  assert np.abs(odd - network(images)).max() > 0.1


def test_few_at_a_time():
  seen = []

  def network(x):
    seen.append(x.shape)
    return 2 * x

  images = pictures(10, 10, 6)
  np.testing.assert_array_equal(large_pictures.few_at_a_time(network, images, 250), 2 * images)
  large_pictures.few_at_a_time(network, images, 600)
  large_pictures.few_at_a_time(network, images, 50)
  assert [shape[0] for shape in seen] == [2, 6, 1]


@pytest.mark.parametrize(
  ("windows", "message"),
  [
    (Windows(24, 10, 4), "have no core"),
    (Windows(24, 1, 4, multiple=4), "have no core"),
    (Windows(24, 4, 4, multiple=4), "30x41 in windows of 24 are not multiples of 4"),
  ],
)
def test_windows_that_do_not_fit(windows, message):
  with pytest.raises(ValueError, match=message):
    large_pictures.apply(lambda x: x, pictures(30, 41), windows)
