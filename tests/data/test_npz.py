"""Sources in one .npz file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import sources
from udp_jax.errors import BadDataError, ConfigError, MissingDataError


def _images(count: int = 6) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def _packed(path: Path, count: int = 6, **replaced: np.ndarray) -> list[np.ndarray]:
  """Writes JPEG scans behind one shared header; returns what Pillow decodes from each file."""
  decoded, files = [], []
  for i in range(count):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 40, 100, 200 - i * 30)).save(buffer, "JPEG", quality=75)
    files.append(buffer.getvalue())
    decoded.append(np.asarray(Image.open(buffer)))
  scan = files[0].index(b"\xff\xda")  # everything before the scan is the same for one quality
  assert all(file[:scan] == files[0][:scan] for file in files)
  offsets = np.cumsum([0] + [len(file) - scan for file in files]).astype(np.uint32)
  arrays = {
    "header": np.frombuffer(files[0][:scan], np.uint8),
    "payload": np.frombuffer(b"".join(file[scan:] for file in files), np.uint8),
    "offsets": offsets,
    "labels": np.array([i % 2 for i in range(count)], np.uint8),
    "classes": np.array(["cat", "dog"]),
  }
  np.savez(path, **{**arrays, **replaced})
  return decoded


def test_plain_arrays(tmp_path: Path) -> None:
  np.savez(tmp_path / "a.npz", images=_images(), labels=np.arange(6))
  loaded = sources.load(f"npz:{tmp_path}/a.npz")
  np.testing.assert_array_equal(loaded.images, _images())
  np.testing.assert_array_equal(loaded.labels, np.arange(6))
  assert loaded.names[3] == "00003"
  assert "note" not in loaded.origin
  assert sources.load(f"{tmp_path}/a.npz").origin == loaded.origin
  assert sources.load(f"{tmp_path}/a.npz", image_size=4).images.shape == (6, 4, 4, 3)


def test_names_in_the_file_are_kept(tmp_path: Path) -> None:
  names = np.array([f"x/{i}" for i in range(6)])
  np.savez(tmp_path / "a.npz", images=_images(), names=names)
  assert sources.load(f"npz:{tmp_path}/a.npz").names == tuple(names)


def test_packed_jpeg_scans(tmp_path: Path) -> None:
  decoded = _packed(tmp_path / "a.npz")
  loaded = sources.load(f"npz:{tmp_path}/a.npz")
  np.testing.assert_array_equal(loaded.images, decoded)
  assert loaded.names[:2] == ("cat/00000", "dog/00001")
  assert loaded.origin["classes"] == ["cat", "dog"]
  assert loaded.origin["note"].startswith("JPEG-sourced")


def test_classes_and_limit_keep_an_images_name(tmp_path: Path) -> None:
  decoded = _packed(tmp_path / "a.npz")
  loaded = sources.load(f"npz:{tmp_path}/a.npz", classes=("dog",), limit=2, seed=5)
  assert len(loaded.names) == 2
  for name, image in zip(loaded.names, loaded.images):
    assert name.startswith("dog/")
    np.testing.assert_array_equal(image, decoded[int(name[-5:])])
  with pytest.raises(ConfigError, match="no class cow"):
    sources.load(f"npz:{tmp_path}/a.npz", classes=("cow",))


@pytest.mark.parametrize(
  ("arrays", "words"),
  [
    ({"images": _images().astype(np.float32)}, "uint8"),
    ({"images": _images()[0]}, "uint8"),
    ({"images": _images()[..., :1]}, "uint8"),
    ({"pictures": _images()}, "no array 'images'"),
    ({"images": _images(), "labels": np.arange(5)}, "'labels' must be 6"),
    ({"images": _images(), "labels": np.full(6, 2), "classes": np.array(["a"])}, "1 classes"),
    ({"images": _images(), "names": np.array(["a"] * 6)}, "'names' must be 6"),
    ({"images": _images(1), "names": np.array(["../a"])}, "leaves its folder"),
    ({"images": np.array([_images(1), "x"], object)}, "not a readable"),
  ],
)
def test_unusable_arrays(tmp_path: Path, arrays: dict, words: str) -> None:
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(BadDataError, match=f"a.npz: .*{words}"):
    sources.load(f"npz:{tmp_path}/a.npz")


def test_damaged_packing(tmp_path: Path) -> None:
  _packed(tmp_path / "a.npz", offsets=np.array([0, 10, 5]))
  with pytest.raises(BadDataError, match="'offsets'"):
    sources.load(f"npz:{tmp_path}/a.npz")
  _packed(tmp_path / "b.npz", header=np.zeros(10, np.uint8))
  with pytest.raises(BadDataError, match="image 0 is damaged"):
    sources.load(f"npz:{tmp_path}/b.npz")


def test_no_archive(tmp_path: Path) -> None:
  with pytest.raises(MissingDataError, match="no such file"):
    sources.load(f"npz:{tmp_path}/a.npz")
  (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 but no more")
  with pytest.raises(BadDataError, match="not a readable"):
    sources.load(f"npz:{tmp_path}/a.npz")
  np.save(tmp_path / "b.npy", _images())
  with pytest.raises(BadDataError, match="not an .npz"):
    sources.load(f"npz:{tmp_path}/b.npy")
  np.savez(tmp_path / "c.npz", images=_images()[:0])
  with pytest.raises(MissingDataError, match="no images"):
    sources.load(f"npz:{tmp_path}/c.npz")


def _archive(path: Path, **members: bytes) -> None:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(f"{name}.npy", content)


def _head(text: str) -> bytes:
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"no array", "magic"),
    (_head("["), "not a readable"),
    (_head("(" * 3000), "not a readable"),
    (_head("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"), "promises"),
    (_head("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }"), "promises"),
    (b"\x93NUMPY\x07\x00" + bytes(80), "version"),
  ],
)
def test_arrays_whose_heads_lie(content: bytes, words: str, tmp_path: Path) -> None:
  _archive(tmp_path / "a.npz", images=content)
  with pytest.raises(BadDataError, match=f"a.npz: .*{words}"):
    sources.load(f"npz:{tmp_path}/a.npz")


def test_more_classes_than_anyone_has(tmp_path: Path) -> None:
  np.savez_compressed(tmp_path / "a.npz", images=_images(), classes=np.zeros(10**6, np.int8))
  with pytest.raises(BadDataError, match="'classes' must be a list of names"):
    sources.load(f"npz:{tmp_path}/a.npz")
