"""Reads CIFAR-10 from its binary archive in numpy (Krizhevsky 2009).

A record is one label byte and 3,072 pixel bytes: the 32 x 32 red, green and blue planes.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udp_jax.data import image_set, npz
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import BadDataError, MissingDataError

ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = (
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
)

_FOLDER = "cifar-10-batches-bin"
_RECORD = 1 + 3 * 32 * 32
_FILES = {
  "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
  "test": ("test_batch.bin",),
}
_HOW = (
  "get it from https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and give its path as "
  "cifar10:PATH"
)


def load_cifar10(
  path: str | Path,
  *,
  part: str = "train",
  image_size: int | None = None,
  limit: int | None = None,
  seed: int = 0,
  classes: Sequence[str] | None = None,
  archive_bytes: int = ARCHIVE_BYTES,
  archive_sha256: str = ARCHIVE_SHA256,
) -> ImageSet:
  """Reads CIFAR-10; other arguments and errors as in `sources.load`.

  Args:
    path: the archive, the folder that holds it, or the folder of the extracted `.bin` files.
    part: "train" (50,000 images) or "test" (10,000).
    archive_bytes: the expected size of the archive.
    archive_sha256: expected checksum of the archive; extracted files are checked by size only.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "test_batch.bin").write_bytes(bytes(2 * 3073)) and None
  ...   load_cifar10(place, part="test").names
  ('airplane/00000', 'airplane/00001')
  """
  path = Path(path)
  archive, extracted = _find(path, part)
  if archive is not None:
    _check_archive(archive, archive_bytes, archive_sha256)
    blocks = _read_archive(archive, part)
  else:
    try:
      blocks = [(extracted / name).read_bytes() for name in _FILES[part]]
    except OSError as error:
      raise BadDataError(f"{error.filename}: cannot be read ({error.strerror})") from error
  for name, block in zip(_FILES[part], blocks):
    if not block or len(block) % _RECORD:
      raise BadDataError(
        f"{path}: {name} has {len(block)} bytes, not a multiple of {_RECORD}; {_HOW}"
      )
  records = np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, _RECORD)
  labels = records[:, 0].astype(np.int32)
  if labels.max() >= len(CLASSES):
    raise BadDataError(f"{path}: label {labels.max()} in it; these are not CIFAR-10 records")
  names = npz.numbered_names(range(len(records)), labels, CLASSES)
  selected = np.arange(len(records))
  if classes is not None:
    wanted = image_set.class_indices(classes, CLASSES, "cifar10")
    selected = np.flatnonzero(np.isin(labels, wanted))
  if not len(selected):
    raise MissingDataError(f"{path}: no images of class {', '.join(classes or ())} in it")
  chosen = selected[image_set.choose(len(selected), limit, seed)]
  pixels = records[chosen, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return image_set.finish(
    ImageSet(npz.resize_all(pixels, image_size), [names[i] for i in chosen], labels[chosen]),
    f"CIFAR-10 {part} {path}",
    classes=CLASSES,
    archive_sha256=archive_sha256 if archive is not None else None,
  )


def _find(path: Path, part: str) -> tuple[Path | None, Path]:
  """Finds (archive, folder): the archive if there is one, and the folder of extracted files."""
  if path.is_file():
    return path, path.parent
  places = [path, path / _FOLDER]
  for place in places:
    if all((place / name).is_file() for name in _FILES[part]):
      return None, place
  if (path / ARCHIVE).is_file():
    return path / ARCHIVE, path
  if path.is_dir():
    wanted = f"{ARCHIVE} or {_FILES[part][0]} ..."
    raise MissingDataError(f"CIFAR-10: no {wanted} in {places[0]} or {places[1]}; {_HOW}")
  raise MissingDataError(f"CIFAR-10: {path} does not exist; {_HOW}")


def _check_archive(archive: Path, size: int, sha256: str) -> None:
  actual = archive.stat().st_size
  if actual != size:
    raise BadDataError(
      f"{archive}: {actual} bytes instead of {size}, perhaps an interrupted download; {_HOW}"
    )
  try:
    with open(archive, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise BadDataError(f"{archive}: cannot be read ({error.strerror})") from error
  if digest != sha256:
    raise BadDataError(f"{archive}: wrong checksum {digest}, expected {sha256}; {_HOW}")


def _read_archive(archive: Path, part: str) -> list[bytes]:
  """Reads the part's files in one pass over the compressed stream, unpacking nothing to disk."""
  found: dict[str, bytes] = {}
  try:
    with tarfile.open(archive, "r|gz") as stream:
      for member in stream:
        name = Path(member.name).name
        if name in _FILES[part] and (content := stream.extractfile(member)) is not None:
          found[name] = content.read()
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise BadDataError(f"{archive}: not a readable .tar.gz archive ({error}); {_HOW}") from error
  missing = [name for name in _FILES[part] if name not in found]
  if missing:
    raise BadDataError(f"{archive}: no {missing[0]} in it; {_HOW}")
  return [found[name] for name in _FILES[part]]
