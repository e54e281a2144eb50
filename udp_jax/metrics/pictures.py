"""Distances between pictures of the same motif: one value per picture and metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax.metrics.batches import over_pictures
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.ops import similarity
from udp_jax.ops.image import to_float

# Smallest sides for SSIM's window and for the four scales of VIFp.
_MIN_SSIM, _MIN_VIF = 11, 41

Values = dict[str, np.ndarray]


class Comparison:
  """Compares sets of pictures; every metric is compiled once per shape.

  Metrics: "psnr" (dB; NaN for identical pictures), "ssim" (NaN below 11 pixels), "vif" (VIFp, NaN
  below 41 pixels), "perceptual" (NaN if the network needs larger pictures), "rmse" (root mean
  square of the difference) and "max_abs", both in 8-bit levels.
  """

  def __init__(
    self, perceptual: PerceptualDistance | None, *, per_device_batch_size: int, mesh: Mesh
  ):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      perceptual: the distance to measure, from `models.perceptual.load`, or None.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
    """
    self._perceptual, self._size, self._mesh = perceptual, per_device_batch_size, mesh
    self._compiled: dict[tuple[int, int], dict[str, Callable[..., jax.Array]]] = {}

  def __call__(self, reference: np.ndarray, images: np.ndarray) -> Values:
    """Returns every metric (N,) of uint8 images (N, H, W, 3) against references of that shape.

    Raises:
      ValueError: the shapes differ.
    """
    if reference.shape != images.shape:
      raise ValueError(f"cannot compare pictures {images.shape} with {reference.shape}")
    height, width = images.shape[1:3]
    values: Values = {}
    for name, function in self._metrics((height, width)).items():
      values[name] = over_pictures(
        function, reference, images, per_device_batch_size=self._size, mesh=self._mesh
      ).astype(np.float64)
    for name in ("ssim", "vif", "perceptual"):
      values.setdefault(name, np.full(len(images), np.nan))
    values["psnr"][np.isinf(values["psnr"])] = np.nan
    difference = images.astype(np.float64) - reference.astype(np.float64)
    values["rmse"] = np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3)))
    values["max_abs"] = np.abs(difference).max(axis=(1, 2, 3))
    return values

  def _metrics(self, size: tuple[int, int]) -> dict[str, Callable[..., jax.Array]]:
    if size not in self._compiled:
      made = {"psnr": _compiled(similarity.psnr)}
      if min(size) >= _MIN_SSIM:
        made["ssim"] = _compiled(similarity.ssim)
      if min(size) >= _MIN_VIF:
        made["vif"] = _compiled(similarity.vif_p)
      if self._perceptual is not None and min(size) >= self._perceptual.min_size:
        made["perceptual"] = _perceptual(self._perceptual)
      self._compiled[size] = made
    return self._compiled[size]


def _compiled(metric: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
  return jax.jit(lambda reference, images: metric(to_float(reference), to_float(images)))


def _perceptual(distance: PerceptualDistance) -> Callable[..., jax.Array]:
  @jax.jit
  def compiled(params: Any, reference: jax.Array, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
      return jnp.asarray(distance.apply(params, to_float(reference), to_float(images)))

  return lambda reference, images: compiled(distance.params, reference, images)
