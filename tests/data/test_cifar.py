"""CIFAR-10's binary archive, on tiny archives in its exact layout."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from udp_jax.data import cifar, sources
from udp_jax.errors import BadDataError, ConfigError, MissingDataError

_PER_FILE = 4


def _records() -> tuple[np.ndarray, np.ndarray]:
  """Labels (24,) and images (24, 32, 32, 3): five training files and a test file of four."""
  generator = np.random.default_rng(0)
  return np.arange(24) % 10, generator.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def _files() -> dict[str, bytes]:
  labels, images = _records()
  names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
  files = {}
  for k, name in enumerate(names):
    part = range(k * _PER_FILE, (k + 1) * _PER_FILE)
    files[name] = b"".join(
      bytes([labels[i]]) + images[i].transpose(2, 0, 1).tobytes() for i in part
    )
  return files


def _archive(path: Path, files: dict[str, bytes] | None = None) -> dict[str, object]:
  with tarfile.open(path, "w:gz") as archive:
    for name, content in (files or _files()).items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  content = path.read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  return {"archive_bytes": len(content), "archive_sha256": digest}


@pytest.mark.parametrize(("part", "start", "stop"), [("train", 0, 20), ("test", 20, 24)])
def test_archive(tmp_path: Path, part: str, start: int, stop: int) -> None:
  expected = _archive(tmp_path / "c.tar.gz")
  loaded = cifar.load_cifar10(tmp_path / "c.tar.gz", part=part, **expected)
  labels, images = _records()
  np.testing.assert_array_equal(loaded.images, images[start:stop])
  np.testing.assert_array_equal(loaded.labels, labels[start:stop])
  assert loaded.names[1] == f"{cifar.CLASSES[labels[start + 1]]}/00001"
  assert loaded.origin["archive_sha256"] == expected["archive_sha256"]


def test_archive_is_found_in_its_folder(tmp_path: Path) -> None:
  expected = _archive(tmp_path / cifar.ARCHIVE)
  assert len(cifar.load_cifar10(tmp_path, **expected).images) == 20


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_extracted_files(tmp_path: Path, below: str) -> None:
  (tmp_path / below).mkdir(exist_ok=True)
  for name, content in _files().items():
    (tmp_path / below / name).write_bytes(content)
  train = sources.load(f"cifar10:{tmp_path}")
  np.testing.assert_array_equal(train.images, _records()[1][:20])
  assert len(sources.load(f"cifar10-test:{tmp_path}").images) == 4
  cars = sources.load(f"cifar10:{tmp_path}", classes=("automobile",), image_size=16)
  assert cars.names == ("automobile/00001", "automobile/00011")
  assert cars.images.shape == (2, 16, 16, 3)
  with pytest.raises(ConfigError, match="no class lorry"):
    sources.load(f"cifar10:{tmp_path}", classes=("lorry",))


def test_missing_archive_says_where_and_how(tmp_path: Path) -> None:
  for place in (tmp_path, tmp_path / "nothing"):
    with pytest.raises(MissingDataError, match="CIFAR-10: .*get it from https://") as caught:
      sources.load(f"cifar10:{place}")
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_size_and_wrong_checksum(tmp_path: Path) -> None:
  expected = _archive(tmp_path / "c.tar.gz")
  with pytest.raises(BadDataError, match="bytes instead of 170052171"):
    sources.load(f"cifar10:{tmp_path}/c.tar.gz")
  with pytest.raises(BadDataError, match="wrong checksum"):
    cifar.load_cifar10(tmp_path / "c.tar.gz", **{**expected, "archive_sha256": "0" * 64})


def test_archive_with_other_contents(tmp_path: Path) -> None:
  expected = _archive(tmp_path / "a.tar.gz", {"data_batch_1.bin": b"x"})
  with pytest.raises(BadDataError, match="no data_batch_2.bin in it"):
    cifar.load_cifar10(tmp_path / "a.tar.gz", **expected)
  expected = _archive(tmp_path / "b.tar.gz", {**_files(), "data_batch_2.bin": b"short"})
  with pytest.raises(BadDataError, match="data_batch_2.bin has 5 bytes"):
    cifar.load_cifar10(tmp_path / "b.tar.gz", **expected)
  expected = _archive(tmp_path / "c.tar.gz", {**_files(), "data_batch_2.bin": b"\xff" * 3073})
  with pytest.raises(BadDataError, match="label 255"):
    cifar.load_cifar10(tmp_path / "c.tar.gz", **expected)
  (tmp_path / "d.tar.gz").write_bytes(b"no gzip at all")
  digest = hashlib.sha256(b"no gzip at all").hexdigest()
  with pytest.raises(BadDataError, match="not a readable .tar.gz"):
    cifar.load_cifar10(tmp_path / "d.tar.gz", archive_bytes=14, archive_sha256=digest)


def test_constants_are_the_published_archives() -> None:
  assert cifar.ARCHIVE_BYTES == 170_052_171
  assert cifar.ARCHIVE_SHA256.startswith("c4a38c50a1bc5f3a") and len(cifar.ARCHIVE_SHA256) == 64
