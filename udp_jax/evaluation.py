"""Measuring protected pictures and what models trained on them generate.

Everything here works on 8-bit pictures as they were saved, and on features of them; nothing is
measured on an array that was not written to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax import objectives, training
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import frechet, similarity, timesteps
from udp_jax.ops.image import to_float
from udp_jax.randomness import example_keys

Metrics = dict[str, float]


def picture_metrics(clean: np.ndarray, protected: np.ndarray, radius_255: float) -> Metrics:
  """How visible a perturbation is.

  Args:
    clean: uint8 (N, H, W, 3).
    protected: uint8 (N, H, W, 3).
    radius_255: the budget in levels.

  Returns:
    `psnr` (dB, mean over the pictures that differ; NaN when none does), `ssim` (NaN below 11 px),
    `rms_ratio`: root mean square of protected - clean over the budget, `max_abs_255`: levels.
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


def distribution_metrics(real: np.ndarray, generated: np.ndarray, *, seed: int = 0) -> Metrics:
  """How far generated pictures are from real ones, in feature space.

  Args:
    real: features of held-out clean pictures, (N, D).
    generated: features of samples, (M, D).
    seed: of the subsets of the MMD.

  Returns:
    `fd` (Frechet distance, Heusel et al. 2017), `precision` and `recall` (Kynkaanniemi et al. 2019,
    k = 3), `mmd` and `mmd_se` (polynomial kernel, Binkowski et al. 2018).
  """
  distance = frechet.frechet_distance(statistics(real), statistics(generated))
  precision, recall = frechet.precision_recall(real, generated)
  mmd = frechet.polynomial_mmd(real, generated, seed=seed)
  values = {"fd": distance, "precision": precision, "recall": recall, "mmd": mmd.mean}
  return {k: float(v) for k, v in values.items()} | {"mmd_se": float(mmd.standard_error)}


def statistics(features: np.ndarray) -> frechet.FeatureStatistics:
  """Mean and scatter of features (N, D)."""
  return frechet.update(frechet.empty(features.shape[1]), features)


def denoising_loss(
  model: DiffusionModel,
  *,
  seed: int = 0,
  draws: int = 8,
  per_device_batch_size: int = 64,
  probs: ArrayLike | None = None,
) -> Callable[..., float]:
  """Mean denoising loss of trained parameters, with draws fixed by `seed`.

  The same pictures and seed give every model the same timesteps and noises, so that two models
  can be compared at a fraction of the noise of their training losses.

  Args:
    model: the diffusion model.
    seed: of timesteps and noises.
    draws: timesteps and noises a picture.
    per_device_batch_size: pictures in one call.
    probs: (T,) distribution over timesteps; None for uniform.

  Returns:
    (params, images uint8 (N, H, W, 3), cond (N, ...) or None) -> loss; compiled once.
  """
  key = jax.random.key(seed)
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = objectives.denoising(model, uniform if probs is None else probs)

  @jax.jit
  def batch_loss(params: Params, batch: training.Batch):
    def draw(total: jax.Array, step: jax.Array):
      keys = example_keys(key, step, batch.ids)
      losses, _ = objective(params, to_float(batch.images), batch.cond, keys)
      return total + jnp.sum(losses * batch.weight), None

    return jax.lax.scan(draw, jnp.zeros(()), jnp.arange(draws))[0]

  def loss(params: Params, images: np.ndarray, cond: np.ndarray | None = None) -> float:
    batches = training.make_batches(images, per_device_batch_size, cond=cond)
    rows = (jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(len(batches.ids)))
    return sum(float(batch_loss(params, row)) for row in rows) / (len(images) * draws)

  return loss


def summarise(values: Sequence[float]) -> dict[str, Any]:
  """Mean and standard deviation (over seeds; None for a single value) of finite values."""
  finite = [float(v) for v in values if np.isfinite(v)]
  mean = float(np.mean(finite)) if finite else None
  std = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
  return {"mean": mean, "std": std, "values": [float(v) for v in values]}
