"""Noisy upscaling (Hoenig et al. 2024, arXiv:2406.12027): noise, then an upscaler that removes it.

The paper adds noise of 0.05 and enlarges by Stable Diffusion's upscaler, which is told of it.
Difference: here RealESRGAN (`upscale`) removes it, which measures nothing and needs no prompt, and
the picture returns to its size.
"""

from __future__ import annotations

from udp_jax.models import realesrgan
from udp_jax.models.base import DiffusionModel
from udp_jax.purifiers.base import Purifier
from udp_jax.purifiers.chain import chain


def noisy_upscaling(
  model: DiffusionModel | None,
  *,
  std: float = 0.05,
  tile_size: int = 192,
  resampling: str = "box",
  weights: str | realesrgan.Params = "",
) -> Purifier:
  """Adds Gaussian noise, enlarges by RealESRGAN and shrinks back.

  Args:
    model: unused.
    std: standard deviation of the noise on [0, 1]; the paper's is 0.05.
    tile_size: as for `upscale`.
    resampling: how pictures are shrunk, as for `upscale`.
    weights: as for `upscale`.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `upscale`.

  >>> noisy_upscaling(None, tile_size=16)
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier upscale: tile_size must be 64 to 100000, got 16
  """
  enlarged = {
    "name": "upscale",
    "tile_size": tile_size,
    "resampling": resampling,
    "weights": weights,
  }
  return chain(model, methods=({"name": "gaussian_noise", "std": std}, enlarged))
