"""Measures how visible a perturbation is.

All metrics use the saved 8-bit pictures, never an array that was not written to disk.
"""

from __future__ import annotations

import jax
import numpy as np

from udp_jax.ops import similarity
from udp_jax.ops.image import to_float

Metrics = dict[str, float]


def picture_metrics(clean: np.ndarray, protected: np.ndarray, radius_255: float) -> Metrics:
  """Measures how visible a perturbation is.

  Args:
    clean: uint8 (N, H, W, 3), clean pictures.
    protected: uint8 (N, H, W, 3), protected pictures.
    radius_255: the budget in 8-bit levels.

  Returns:
    `psnr` (dB, mean over the pictures that differ; NaN if none does), `ssim` (NaN below 11 pixels),
    `rms_ratio` (root mean square of protected - clean, over the budget), `max_abs_255` (levels).
  """
  difference = protected.astype(np.int16) - clean.astype(np.int16)
  changed = np.abs(difference).max(axis=(1, 2, 3)) > 0
  psnr = np.concatenate([_psnr(c, p) for c, p in _chunks(clean, protected)])
  ssim = np.array([np.nan])
  if min(clean.shape[1:3]) >= 11:
    ssim = np.concatenate([_ssim(c, p) for c, p in _chunks(clean, protected)])
  rms = np.sqrt(np.mean(np.square(difference.astype(np.float64))))
  return {
    "psnr": float(psnr[changed].mean()) if changed.any() else float("nan"),
    "ssim": float(ssim.mean()),
    "rms_ratio": float(rms / radius_255),
    "max_abs_255": float(np.abs(difference).max()),
  }


@jax.jit
def _psnr(clean: jax.Array, protected: jax.Array) -> jax.Array:
  return similarity.psnr(to_float(clean), to_float(protected))


@jax.jit
def _ssim(clean: jax.Array, protected: jax.Array) -> jax.Array:
  return similarity.ssim(to_float(clean), to_float(protected))


def _chunks(*arrays: np.ndarray, size: int = 512) -> list[tuple[np.ndarray, ...]]:
  return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]
