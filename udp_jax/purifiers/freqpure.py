"""FreqPure (Pei et al., ICML 2025, arXiv:2505.01267): DiffPure that keeps low frequencies.

Perturbations harm a picture's spectrum more the higher the frequency, so every reverse step's
estimate of the clean picture gets what the picture itself has at low ones: its amplitudes, and its
phases up to a difference.

Certain from the paper's abstract: both corrections, at every step. From the released code: both
bands are discs around frequency zero, in cycles a picture; per channel; the numbers below. Not
certain: the published schedules of steps, which differ from script to script; here the chain is
DiffPure's, DDPM's over every timestep, where the newest released file takes DDIM's.

Differences from that code: it replaces the phases of the band wholly, and its range has no effect
then, where the paper projects into the range, as here; differences of phases are taken around the
circle; and it rounds estimates to 8 bits, which wraps what lies outside of [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.purifiers import base, diffpure
from udp_jax.purifiers.base import Purifier


def freqpure(
  model: DiffusionModel | None,
  *,
  timestep: int = 100,
  amplitude_cutoff: float = 3.0,
  phase_cutoff: float = 3.0,
  phase_range: float = 0.3,
  variance: str = "",
  cond: Cond = None,
) -> Purifier:
  """Diffuses every picture to `timestep` and runs the reverse chain, its low frequencies held.

  Pictures must have the model's size. The model is a prior of its own: give it as
  `purifier_model`; without one, the attacked model purifies.

  Args:
    model: a diffusion model of pixels, for pictures of this size.
    timestep: number of steps of noise, and of denoising, as for `diffpure`.
    amplitude_cutoff: radius of the band whose amplitudes are the picture's own, in cycles a
      picture. The published scripts have 3 for CIFAR-10 (32 pixels) and 10 for ImageNet (256).
    phase_cutoff: radius of the band whose phases stay near the picture's own; published with the
      same values.
    phase_range: how far they may be from it, in radians, 0 to pi; the published scripts have 0.3.
    variance: variance of the reverse steps, as for `diffpure`.
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.

  Raises:
    ConfigError: an option does not fit the model, or the model works on latents. `apply` raises it
      for pictures of another size.

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_pixels(), jax.random.split(jax.random.key(0), 1)
  >>> params = model.init(jax.random.key(1))
  >>> method = freqpure(model, timestep=3)
  >>> method.apply(params, keys, jnp.full((1, 8, 8, 3), 0.5)).shape
  (1, 8, 8, 3)
  """
  model = base.need_model(model, "freqpure")
  variance = diffpure.check(model, "freqpure", timestep, variance)
  if model.reconstruct is not None:
    raise ConfigError(
      "purifier freqpure works on pixels: give a pixel model as its prior, --purifier_model=FOLDER"
    )

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    if images.shape[1:] != model.image_shape:
      height, width, _ = model.image_shape
      raise ConfigError(
        f"pictures of {images.shape[1]}x{images.shape[2]} do not fit freqpure with a model of "
        f"{height}x{width}: resize them"
      )
    held = model.hold(params)

    def correct(x0: jax.Array) -> jax.Array:
      estimate = model.decode(held, x0)
      mixed = hold_low_frequencies(
        estimate,
        images,
        amplitude_cutoff=amplitude_cutoff,
        phase_cutoff=phase_cutoff,
        phase_range=phase_range,
      )
      return model.encode(held, jnp.clip(mixed, 0.0, 1.0), None)

    return diffpure.noise_and_denoise(
      model, held, keys, images, timestep=timestep, variance=variance, cond=cond, correct=correct
    )

  return Purifier(base.model_params_only(model), apply, needs_model=True)


def hold_low_frequencies(
  estimates: jax.Array,
  images: jax.Array,
  *,
  amplitude_cutoff: float,
  phase_cutoff: float,
  phase_range: float,
) -> jax.Array:
  """Gives pictures the low frequencies of others.

  Args:
    estimates: (B, H, W, C), the pictures that are changed.
    images: (B, H, W, C), those whose low frequencies are taken.
    amplitude_cutoff, phase_cutoff, phase_range: as for `freqpure`.

  Returns:
    (B, H, W, C), not clipped.

  >>> grey, dark = jnp.full((1, 8, 8, 1), 0.5), jnp.full((1, 8, 8, 1), 0.25)
  >>> bands = {"amplitude_cutoff": 0.0, "phase_cutoff": 0.0, "phase_range": 0.0}
  >>> hold_low_frequencies(dark, grey, **bands).mean().round(3).tolist()
  0.5
  """
  height, width = images.shape[1:3]
  cycles = [np.fft.fftfreq(size, 1 / size) for size in (height, width)]
  radius = np.hypot(cycles[0][:, None], cycles[1])[:, :, None]
  own, other = (jnp.fft.fft2(x, axes=(1, 2)) for x in (estimates, images))
  amplitude = jnp.where(radius <= amplitude_cutoff, jnp.abs(other), jnp.abs(own))
  # The angle between the two, in (-pi, pi] whatever their own are.
  apart = jnp.angle(own * jnp.conj(other))
  near = jnp.angle(other) + jnp.clip(apart, -phase_range, phase_range)
  phase = jnp.where(radius <= phase_cutoff, near, jnp.angle(own))
  return jnp.real(jnp.fft.ifft2(amplitude * jnp.exp(1j * phase), axes=(1, 2)))
