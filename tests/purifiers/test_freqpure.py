"""DiffPure that keeps low frequencies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.purifiers.photographs import KEYS, photograph
from udp_jax import purifiers
from udp_jax.errors import ConfigError
from udp_jax.ops.image import to_float
from udp_jax.purifiers.freqpure import hold_low_frequencies


def reference(estimates, images, amplitude_cutoff, phase_cutoff, phase_range):
  """One frequency at a time."""
  out = np.zeros(images.shape)
  for n in range(len(images)):
    for c in range(images.shape[3]):
      own, other = (np.fft.fft2(x[n, :, :, c]) for x in (estimates, images))
      height, width = own.shape
      for i in range(height):
        for j in range(width):
          radius = np.hypot(min(i, height - i), min(j, width - j))
          size, angle = abs(own[i, j]), np.angle(own[i, j])
          if radius <= amplitude_cutoff:
            size = abs(other[i, j])
          if radius <= phase_cutoff:
            centre = np.angle(other[i, j])
            apart = (angle - centre + np.pi) % (2 * np.pi) - np.pi
            angle = centre + min(max(apart, -phase_range), phase_range)
          own[i, j] = size * np.exp(1j * angle)
      made = np.fft.ifft2(own)
      assert np.abs(made.imag).max() < 1e-9  # It stays a picture.
      out[n, :, :, c] = made.real
  return out


@pytest.mark.parametrize("size", [(8, 7), (9, 10)])
@pytest.mark.parametrize("bands", [(2, 3, 0.3), (0, 1, 0.0), (3, 0, 2.0)])
def test_low_frequencies(size, bands):
  generator = np.random.default_rng(0)
  estimates, images = (generator.random((2, *size, 3)) for _ in range(2))
  names = ("amplitude_cutoff", "phase_cutoff", "phase_range")
  got = hold_low_frequencies(jnp.asarray(estimates), jnp.asarray(images), **dict(zip(names, bands)))
  np.testing.assert_allclose(got, reference(estimates, images, *bands), atol=1e-5)


def test_low_frequencies_stay_and_the_others_are_the_priors(gaussian_model):
  """A prior of flat grey: DiffPure forgets the picture, FreqPure keeps its waves of the band."""
  params = {"mean": jnp.full((8, 8, 3), -0.2), "log_spread": jnp.full((3,), -4.0)}
  y, x = np.mgrid[:8, :8] / 8
  low, high = 0.2 * np.sin(2 * np.pi * x), 0.2 * np.cos(8 * np.pi * y)
  images = jnp.asarray(np.repeat((0.5 + low + high)[None, :, :, None], 3, 3), jnp.float32)

  def shares(name, **options):
    purifier = purifiers.build(name, gaussian_model, {"timestep": 45, **options})
    got = jax.jit(purifier.apply)(params, KEYS[:1], images)[0, :, :, 0]
    return [float((got * wave).sum() / (wave**2).sum()) for wave in (low, high)]

  kept = shares("freqpure", amplitude_cutoff=1.0, phase_cutoff=1.0, phase_range=0.0)
  forgotten = shares("diffpure")
  assert kept[0] > 0.9 and abs(kept[1]) < 0.1
  assert max(map(abs, forgotten)) < 0.3
  # Nothing is held outside of an empty range.
  loose = shares("freqpure", amplitude_cutoff=0.0, phase_cutoff=0.0, phase_range=3.1415)
  assert abs(loose[0]) < 0.3


def test_what_is_refused(gaussian_model, latent_model):
  with pytest.raises(ConfigError, match="freqpure works on pixels: .*--purifier_model"):
    purifiers.build("freqpure", latent_model, {"timestep": 2})
  purifier = purifiers.build("freqpure", gaussian_model, {"timestep": 2})
  with pytest.raises(ConfigError, match="24x30 do not fit freqpure with a model of 8x8"):
    purifier.apply(purifier.init(KEYS[0]), KEYS[:1], to_float(photograph(1)))
