"""Reads images from one `.npz` file: plain arrays, or JPEG scans that share a header."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udp_jax.data import image_set, images, naming
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import BadDataError, ConfigError, MissingDataError

# Arrays of pictures. All other arrays are small; a larger one is a decompression bomb.
_LARGE = ("images", "payload")
_MOST_BYTES = 512 << 20
_MOST_CLASSES = 100_000
_HEADS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
# Errors that zipfile, its decompressors, NumPy and Python's parser raise on damaged files.
_ARCHIVE_ERRORS = (
  *(ValueError, TypeError, EOFError, OSError, KeyError, AttributeError, OverflowError, MemoryError),
  *(
    zipfile.BadZipFile,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    lzma.LZMAError,
  ),
)


def load_npz(
  path: str | Path,
  *,
  image_size: int | None,
  limit: int | None,
  seed: int,
  classes: Sequence[str] | None,
) -> ImageSet:
  """Reads an archive; arguments and errors as in `sources.load`. Pickled arrays are refused.

  The archive has one of two layouts:

  * `images` uint8 (N, H, W, 3), optionally `labels` (N,), `names` (N,) and `classes` (K,);
  * `header`, `payload` uint8 and `offsets` (N + 1,): image i is the JPEG file
    `header + payload[offsets[i]:offsets[i + 1]]`; optionally `labels`, `names`, `classes`. These
    pixels are lossy, which `origin["note"]` states.

  Images without names are called `00042`, or `CLASS/00042` if their class is known.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   np.savez(f"{place}/a.npz", images=np.zeros((3, 4, 4, 3), np.uint8))
  ...   load_npz(f"{place}/a.npz", image_size=None, limit=None, seed=0, classes=None).names
  ('00000', '00001', '00002')
  """
  path = Path(path)
  arrays = _read_arrays(path)
  packed = {"header", "payload", "offsets"} <= set(arrays)
  if not packed and "images" not in arrays:
    raise BadDataError(
      f"{path}: no array 'images' (nor 'header', 'payload' and 'offsets'); it has "
      f"{', '.join(sorted(arrays)) or 'nothing'}"
    )
  count = _check_packed(path, arrays) if packed else _check_plain(path, arrays)
  labels, names, class_names = _annotations(path, arrays, count)
  selected = np.arange(count)
  if classes is not None:
    wanted = image_set.class_indices(classes, class_names, str(path))
    selected = np.flatnonzero(np.isin(labels, wanted)) if labels is not None else selected[:0]
  if not len(selected):
    raise MissingDataError(f"{path}: no images in it" + (" of these classes" if classes else ""))
  chosen = selected[image_set.choose(len(selected), limit, seed)]
  origin: dict[str, Any] = {}
  if packed:
    pixels = _decode(path, arrays, chosen)
    origin["note"] = "JPEG-sourced: the pixels carry JPEG's losses"
  else:
    pixels = arrays["images"][chosen]
  return image_set.finish(
    ImageSet(
      resize_all(pixels, image_size),
      [names[i] for i in chosen],
      None if labels is None else labels[chosen],
    ),
    f"npz {path}",
    classes=class_names,
    **origin,
  )


def resize_all(pixels: np.ndarray, image_size: int | None) -> np.ndarray:
  """Crops and resizes uint8 (N, H, W, 3) like `images.resize_picture`, unless the size fits.

  >>> resize_all(np.zeros((2, 8, 8, 3), np.uint8), 4).shape
  (2, 4, 4, 3)
  """
  if image_size is None or pixels.shape[1:3] == (image_size, image_size):
    return pixels
  return np.stack(
    [images.resize_picture(images.Picture(image), image_size).pixels for image in pixels]
  )


def numbered_names(
  numbers: Iterable[int], labels: np.ndarray | None, class_names: Sequence[str] | None
) -> list[str]:
  """Makes names `00042` or `CLASS/00042`, whose subfolders other tools read as labels.

  >>> numbered_names([3, 7], np.array([0, 1]), ["cat", "dog"])
  ['cat/00003', 'dog/00007']
  """
  if labels is None or class_names is None:
    return [f"{number:05d}" for number in numbers]
  folders = [str(name).replace("/", "-").strip(". ") or "class" for name in class_names]
  return [f"{folders[int(label)]}/{number:05d}" for number, label in zip(numbers, labels)]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
  known = ("images", "labels", "names", "classes", "header", "payload", "offsets")
  try:
    with open(path, "rb") as file:
      if file.read(2) != b"PK":
        raise BadDataError(f"{path}: not an .npz archive; save it by numpy.savez")
    with zipfile.ZipFile(path) as archive:
      members = {name.removesuffix(".npy"): name for name in archive.namelist()}
      return {key: _read_array(archive, members[key]) for key in known if key in members}
  except FileNotFoundError as error:
    raise MissingDataError(f"{path}: no such file; give the path of an .npz archive") from error
  except PermissionError as error:
    raise BadDataError(f"{path}: permission denied; make the file readable") from error
  except _ARCHIVE_ERRORS as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise BadDataError(f"{path}: not a readable .npz archive ({reason[:200]})") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads one array, after checking its header against its size before allocating memory.

  Raises:
    ValueError and others of `_ARCHIVE_ERRORS`: the array is damaged or implausibly large.
  """
  size = archive.getinfo(name).file_size
  if not name.startswith(_LARGE) and size > _MOST_BYTES:
    raise ValueError(f"{name} takes {size / 2**20:.0f} MiB, which no set of pictures needs")
  with archive.open(name) as file:
    version = np.lib.format.read_magic(file)
    if version not in _HEADS:
      raise ValueError(f"{name} is of version {version[0]}.{version[1]}")
    shape, _, dtype = _HEADS[version](file)
    promised = math.prod(shape) * dtype.itemsize
    # Pickled objects have no fixed size; they are refused below.
    fits = dtype.hasobject or file.tell() + promised == size
    if min(shape, default=0) < 0 or not fits:
      raise ValueError(f"{name} holds {size} bytes, its head promises {promised}")
  with archive.open(name) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _check_plain(path: Path, arrays: dict[str, np.ndarray]) -> int:
  pixels = arrays["images"]
  if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
    raise BadDataError(
      f"{path}: 'images' must be uint8 (N, H, W, 3) with levels 0 to 255, got "
      f"{pixels.dtype} {pixels.shape}"
    )
  if pixels.size == 0:
    raise MissingDataError(f"{path}: no images in it")
  return len(pixels)


def _check_packed(path: Path, arrays: dict[str, np.ndarray]) -> int:
  offsets = arrays["offsets"]
  sound = (
    arrays["header"].dtype == np.uint8
    and arrays["payload"].dtype == np.uint8
    and arrays["payload"].ndim == 1
    and offsets.dtype.kind in "iu"
    and offsets.ndim == 1
    and len(offsets) > 1
    and offsets[0] >= 0
    and (offsets[1:] > offsets[:-1]).all()
    and offsets[-1] <= arrays["payload"].size
  )
  if not sound:
    raise BadDataError(f"{path}: 'offsets' do not divide 'payload' into JPEG scans; damaged file")
  return len(offsets) - 1


def _annotations(
  path: Path, arrays: dict[str, np.ndarray], count: int
) -> tuple[np.ndarray | None, list[str], list[str] | None]:
  """Reads labels, names and class names, and checks them against each other."""
  labels = arrays.get("labels")
  class_names = _texts(path, arrays, "classes", None)
  if labels is not None:
    integral = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (count,) or not integral or labels.min(initial=0) < 0:
      raise BadDataError(f"{path}: 'labels' must be {count} class indices")
    labels = labels.astype(np.int32)
    if class_names is not None and labels.max(initial=0) >= len(class_names):
      raise BadDataError(
        f"{path}: a label is {labels.max()} but there are {len(class_names)} classes"
      )
  if "names" not in arrays:
    return labels, numbered_names(range(count), labels, class_names), class_names
  names = _texts(path, arrays, "names", count) or []
  if len(set(names)) != count:
    raise BadDataError(f"{path}: 'names' must be {count} different names")
  for name in names:
    if not naming.is_safe_name(name):
      raise BadDataError(f"{path}: name {name!r} is empty, hidden, absolute or leaves its folder")
  return labels, names, class_names


def _texts(
  path: Path, arrays: dict[str, np.ndarray], key: str, count: int | None
) -> list[str] | None:
  """Reads an array of texts: `count` of them, or at most `_MAX_CLASSES` if `count` is None."""
  if key not in arrays:
    return None
  array = arrays[key]
  fits = array.size == count if count is not None else array.size <= _MOST_CLASSES
  if array.ndim != 1 or array.dtype.kind not in "USiu" or not fits:
    wanted = f"{count} different names" if count is not None else "a list of names"
    raise BadDataError(f"{path}: {key!r} must be {wanted}, got {array.dtype} {array.shape}")
  return [str(name) for name in array]


def _decode(path: Path, arrays: dict[str, np.ndarray], chosen: np.ndarray) -> np.ndarray:
  header, payload = arrays["header"].tobytes(), arrays["payload"]
  offsets = arrays["offsets"].astype(np.int64)
  decoded = []
  for i in chosen.tolist():
    scan = payload[offsets[i] : offsets[i + 1]].tobytes()
    try:
      with Image.open(io.BytesIO(header + scan), formats=("JPEG",)) as image:
        decoded.append(np.array(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      raise BadDataError(f"{path}: image {i} is damaged ({error})") from error
  if len({image.shape for image in decoded}) != 1:
    raise ConfigError(f"{path}: its images are not of one size, which this layout requires")
  return np.stack(decoded)
