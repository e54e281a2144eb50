"""Output folders: whole or recognisably unfinished, measured from the files, never a user's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import metrics

from udp_jax.data import image_set, images, manifest, sources
from udp_jax.errors import BadDataError, OutputError

NAMES = ("cat/1", "cat/2", "dog/1")


def _clean(size: int = 16) -> np.ndarray:
  generator = np.random.default_rng(0)
  low = generator.integers(8, 248, (3, size // 4, size // 4, 3), dtype=np.uint8)
  return low.repeat(4, axis=1).repeat(4, axis=2)


def _protected(size: int = 16, radius: int = 4) -> np.ndarray:
  noise = np.random.default_rng(1).integers(-radius, radius + 1, _clean(size).shape)
  noise[:, 0, 0, 0] = radius
  noise[1] //= 2
  return (_clean(size) + noise).astype(np.uint8)


def _listing(folder: Path) -> list[str]:
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _write(folder: Path, **options: object) -> dict:
  return manifest.write_folder(folder, _protected(), NAMES, clean=_clean(), **options)


def test_layout_and_measures(tmp_path: Path) -> None:
  folder = tmp_path / "new/protected"
  record = {"method": "eudp", "config": {"radius_255": 4}, "seed": np.int64(3), "radius_255": 4}
  returned = _write(folder, record=record)
  assert _listing(folder) == ["cat/1.png", "cat/2.png", "dog/1.png", "manifest.json"]
  written = json.loads((folder / "manifest.json").read_text())
  assert written == json.loads(json.dumps(returned, default=int))
  assert (written["format"], written["complete"]) == (1, True)
  assert (written["method"], written["seed"]) == ("eudp", 3)
  assert set(written["versions"]) == {
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "pillow",
    "udp_jax",
  }
  assert written["versions"]["numpy"] == np.__version__
  assert written["source_sha256"] == image_set.pixels_sha256(_clean())
  assert written["created"].endswith("+00:00")
  for i, entry in enumerate(written["images"]):
    path = folder / entry["file"]
    pixels = np.asarray(Image.open(path))
    np.testing.assert_array_equal(pixels, _protected()[i])
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["max_abs_255"] == np.abs(pixels.astype(int) - _clean()[i]).max()
    pair = (_clean()[i] / 255.0, pixels / 255.0)
    psnr = metrics.peak_signal_noise_ratio(*pair, data_range=1)
    np.testing.assert_allclose(entry["psnr"], psnr, atol=1e-3)
    ssim = metrics.structural_similarity(
      *pair, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False,
    )  # fmt: skip
    np.testing.assert_allclose(entry["ssim"], ssim, atol=2e-3)
  assert written["images"][1]["max_abs_255"] == 2
  assert written["worst"]["max_abs_255"] == 4


def test_small_and_identical_images_have_no_numbers_that_json_lacks(tmp_path: Path) -> None:
  written = manifest.write_folder(
    tmp_path / "o", _clean(8), NAMES, clean=_clean(8), record={"method": "clean"}
  )
  assert [(e["max_abs_255"], e["psnr"], e["ssim"]) for e in written["images"]] == [
    (0, None, None)
  ] * 3


def test_without_clean_nothing_is_measured(tmp_path: Path) -> None:
  written = manifest.write_folder(tmp_path / "o", _clean(), NAMES)
  assert set(written["images"][0]) == {"file", "sha256"}
  assert written["source_sha256"] is None


def test_files_are_byte_identical_between_runs(tmp_path: Path) -> None:
  first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
  assert [e["sha256"] for e in first["images"]] == [e["sha256"] for e in second["images"]]
  assert first["code_sha256"] == second["code_sha256"]


def test_broken_budget_is_a_bug_and_leaves_nothing(tmp_path: Path) -> None:
  with pytest.raises(RuntimeError, match="cat/1.png: 4 levels .* budget of 3"):
    _write(tmp_path / "o", record={"radius_255": 3})
  assert not (tmp_path / "o").exists()
  assert _write(tmp_path / "o", record={"radius_255": 4})["complete"]


def test_read_folder_returns_what_was_written(tmp_path: Path) -> None:
  alphas = (None, np.full((16, 16), 7, np.uint8), None)
  profile = b"\0" * 16 + b"RGB " + b"\0" * 100
  metadata = [image_set.Metadata("x.jpg", icc_profile=profile)] + [image_set.Metadata("y")] * 2
  details = manifest.Details(alphas=alphas, metadata=metadata)
  _write(tmp_path / "o", details=details, record={"origin": {"source": "s"}})
  read, record = manifest.read_folder(tmp_path / "o")
  assert record is not None and record["complete"]
  assert read.names == NAMES
  np.testing.assert_array_equal(read.images, _protected())
  np.testing.assert_array_equal(read.labels, [0, 0, 1])
  assert read.alphas is not None and read.alphas[0] is None
  np.testing.assert_array_equal(read.alphas[1], alphas[1])
  assert read.metadata is not None and read.metadata[0].icc_profile == profile
  again = sources.load(tmp_path / "o", strict=True)
  assert again.names == NAMES
  assert again.origin["sha256"] == read.origin["sha256"]


def test_read_folder_of_another_tool(tmp_path: Path) -> None:
  Image.fromarray(_clean()[0]).save(tmp_path / "x.bmp")
  read, record = manifest.read_folder(tmp_path)
  assert record is None
  assert read.names == ("x",)


def test_missing_file_of_a_manifest(tmp_path: Path) -> None:
  _write(tmp_path / "o")
  assert manifest.is_complete(tmp_path / "o")
  (tmp_path / "o/cat/2.png").unlink()
  assert not manifest.is_complete(tmp_path / "o")
  with pytest.raises(BadDataError, match="cat/2.png .*missing"):
    manifest.read_folder(tmp_path / "o")


@pytest.mark.parametrize(
  "content",
  ["", "{", "[]", '{"format": 1}', '{"format": 1, "complete": true, "images": [{"file": "../x"}]}'],
)
def test_other_manifests_are_not_ours(tmp_path: Path, content: str) -> None:
  (tmp_path / "manifest.json").write_text(content)
  assert manifest.read_manifest(tmp_path) is None
  assert not manifest.is_complete(tmp_path)
  with pytest.raises(OutputError, match="not ours"):
    _write(tmp_path, overwrite=True)
  assert (tmp_path / "manifest.json").read_text() == content


def test_finished_folder_is_only_replaced_when_allowed(tmp_path: Path) -> None:
  _write(tmp_path / "o")
  before = (tmp_path / "o/manifest.json").read_bytes()
  with pytest.raises(OutputError, match="finished output already"):
    _write(tmp_path / "o")
  assert (tmp_path / "o/manifest.json").read_bytes() == before
  manifest.write_folder(tmp_path / "o", _clean()[:1], ["other"], overwrite=True)
  assert sorted(os.listdir(tmp_path / "o")) == ["manifest.json", "other.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_users_files_are_never_touched(tmp_path: Path, overwrite: bool, finished: bool) -> None:
  folder = tmp_path / "o"
  if finished:
    _write(folder)
  folder.mkdir(exist_ok=True)
  (folder / "holiday.png").write_bytes(b"precious")
  before = _listing(folder)
  with pytest.raises(OutputError, match="holiday.png|finished"):
    _write(folder, overwrite=overwrite)
  assert _listing(folder) == before
  assert (folder / "holiday.png").read_bytes() == b"precious"


def test_empty_folder_is_used_and_file_is_refused(tmp_path: Path) -> None:
  (tmp_path / "o").mkdir()
  (tmp_path / "o/.DS_Store").write_bytes(b"litter")
  assert _write(tmp_path / "o")["complete"]
  (tmp_path / "f").write_bytes(b"a file")
  with pytest.raises(OutputError, match="it is a file"):
    _write(tmp_path / "f")
  with pytest.raises(OutputError):
    _write(tmp_path / "f/below")


@pytest.mark.parametrize(
  ("code", "words"),
  [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
)
@pytest.mark.parametrize("existed", [False, True])
def test_full_or_read_only_disk_leaves_no_half_written_output(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str, existed: bool
) -> None:
  if existed:
    (tmp_path / "o").mkdir()
  calls = []
  fsync = os.fsync

  def fail_at_the_third(descriptor: int) -> None:
    calls.append(descriptor)
    if len(calls) >= 3:
      raise OSError(code, os.strerror(code))
    fsync(descriptor)

  monkeypatch.setattr(os, "fsync", fail_at_the_third)
  with pytest.raises(OutputError, match=words) as caught:
    _write(tmp_path / "o")
  assert "\n" not in str(caught.value)
  assert (tmp_path / "o").exists() == existed
  assert not existed or os.listdir(tmp_path / "o") == []
  monkeypatch.undo()
  assert _write(tmp_path / "o")["complete"]


def test_read_only_place_is_found_before_any_work(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  manifest.check_output(tmp_path / "x/o")
  assert os.listdir(tmp_path) == []
  _write(tmp_path / "done")
  with pytest.raises(OutputError, match="finished"):
    manifest.check_output(tmp_path / "done")
  manifest.check_output(tmp_path / "done", overwrite=True)
  assert manifest.is_complete(tmp_path / "done")

  def refuse(*args: object, **options: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(os, "mkdir", refuse)
  with pytest.raises(OutputError, match="x/o.*read-only"):
    manifest.check_output(tmp_path / "x/o")


_KILLED = """
import sys, numpy as np
from udp_jax.data import manifest
images = np.random.default_rng(0).integers(0, 256, (3000, 64, 64, 3), dtype=np.uint8)
print("ready", flush=True)
manifest.write_folder(sys.argv[1], images, [f"k/{i:04d}" for i in range(3000)])
"""


def test_killed_run_is_recognised_and_replaced(tmp_path: Path) -> None:
  folder = tmp_path / "o"
  process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder)], stdout=subprocess.PIPE)
  while process.poll() is None and not list(folder.glob("k/*.png")):
    time.sleep(0.005)
  process.kill()
  process.wait()
  assert process.stdout is not None
  process.stdout.close()
  assert list(folder.glob("k/*.png"))
  assert not (folder / "manifest.json").exists()
  assert not manifest.is_complete(folder)
  for read in (manifest.read_folder, sources.load):
    with pytest.raises(BadDataError, match="interrupted"):
      read(folder)

  (folder / "mine.txt").write_text("a user's note")
  with pytest.raises(OutputError, match="mine.txt"):
    _write(folder)
  (folder / "mine.txt").unlink()
  _write(folder)
  assert _listing(folder) == ["cat/1.png", "cat/2.png", "dog/1.png", "manifest.json"]


def test_kill_while_an_old_output_is_removed(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  folder = tmp_path / "o"
  _write(folder)
  unlink = Path.unlink

  def killed_at_the_second(path: Path, missing_ok: bool = False) -> None:
    if path.suffix == ".png":
      raise KeyboardInterrupt
    unlink(path, missing_ok=missing_ok)

  monkeypatch.setattr(Path, "unlink", killed_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    manifest.write_folder(folder, _clean()[:1], ["other"], overwrite=True)
  monkeypatch.undo()
  assert "cat/1.png" in _listing(folder) and not manifest.is_complete(folder)
  manifest.write_folder(folder, _clean()[:1], ["other"])
  assert _listing(folder) == ["manifest.json", "other.png"]


def test_wrong_pixels_on_disk_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  read = images.read_image
  monkeypatch.setattr(
    images, "read_image", lambda path: read(path)._replace(pixels=read(path).pixels ^ 1)
  )
  with pytest.raises(RuntimeError, match="does not hold the pixels"):
    _write(tmp_path / "o")
  assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"images_uint8": _clean().astype(np.float32)}, "uint8"),
    ({"names": NAMES[:2]}, "2 names for 3"),
    ({"names": ("a", "a", "b")}, "unique"),
    ({"names": ("a", "b", "../c")}, "leaves the folder"),
    ({"clean": _clean(8)}, "clean must be"),
    ({"details": manifest.Details(alphas=[None])}, "1 alphas"),
    ({"details": manifest.Details(metadata=[image_set.Metadata("")])}, "1 metadata"),
    ({"record": {"images": []}}, "may not set images"),
    ({"record": {"config": object()}}, "JSON"),
    ({"record": {"loss": float("nan")}}, "JSON"),
  ],
)
def test_unusable_arguments_are_refused_before_writing(
  tmp_path: Path, changed: dict, words: str
) -> None:
  arguments = {"images_uint8": _protected(), "names": NAMES, "clean": _clean(), **changed}
  with pytest.raises((ValueError, TypeError), match=words):
    manifest.write_folder(tmp_path / "o", **arguments)
  assert os.listdir(tmp_path) == []


def test_file_and_folder_of_one_name(tmp_path: Path) -> None:
  with pytest.raises(OutputError, match="a.png would be both"):
    manifest.write_folder(tmp_path / "o", _clean(), ("a", "a.png/b", "c"))
