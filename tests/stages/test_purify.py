"""Folders of pictures of different sizes, purified whole, in two parts, in any batches."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from udp_jax import purifiers
from udp_jax.data import picture_files
from udp_jax.errors import ConfigError, OutputError
from udp_jax.ops.keys import stream
from udp_jax.runtime import mesh
from udp_jax.stages import purify
from udp_jax.stages.records import Run


def _pictures(folder: Path) -> Path:
  """Sizes that differ, one twice; transparency, EXIF that turns, a nested folder; one is tiny."""
  folder.mkdir()
  generator = np.random.default_rng(0)
  for name, (height, width) in {
    "a.png": (33, 47), "b/c.jpg": (20, 20), "b/d.png": (33, 47), "tiny.png": (2, 3),
  }.items():  # fmt: skip
    (folder / name).parent.mkdir(exist_ok=True)
    pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
  turned = Image.fromarray(generator.integers(0, 256, (12, 30, 3)).astype(np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  turned.save(folder / "turned.jpg", exif=exif, quality=95)
  glass = generator.integers(0, 256, (16, 16, 4)).astype(np.uint8)
  Image.fromarray(glass).save(folder / "glass.png")
  return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
  return _pictures(tmp_path_factory.mktemp("purify") / "source")


def _run(source: Path, output: Path, method: str, options: dict | None = None, **more):
  purifier = purifiers.build(method, None, options or {})
  settings = {"method": method, "options": options or {}, "seed": 0}
  prepared = purify.Prepared(purifier, purifier.init(jax.random.key(0)), settings)
  strict = more.pop("strict", False)
  run = Run(
    mesh=mesh.make_mesh(),
    folder=Path(f"{output}.work"),
    key=stream(jax.random.key(0), "purifier"),
    label="purify",
    progress=False,
    **({"sample_batch_size": 8} | more),
  )
  found = picture_files.list_pictures(source)
  return purify.purify(prepared, found, output, run, strict=strict)


def _bytes(folder: Path) -> dict[str, bytes]:
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_every_picture_comes_out(source):
  output = source.parent / "jpeg"
  made = _run(source, output, "jpeg", {"quality": 40}, sample_batch_size=2)
  assert json.loads((output / "manifest.json").read_text()) == made
  files = {entry["file"]: entry for entry in made["images"]}
  assert set(files) == {"a.png", "b/c.png", "b/d.png", "tiny.png", "turned.png", "glass.png"}
  assert all(entry["max_abs_255"] > 0 for entry in files.values())
  buffer = io.BytesIO()
  Image.open(source / "a.png").save(buffer, "JPEG", quality=40)
  np.testing.assert_array_equal(np.asarray(Image.open(output / "a.png")), Image.open(buffer))
  assert Image.open(output / "turned.png").size == (12, 30)
  glass, before = (np.asarray(Image.open(folder / "glass.png")) for folder in (output, source))
  np.testing.assert_array_equal(glass[..., 3], before[..., 3])


@pytest.fixture(scope="module")
def noisy(source):
  """A finished folder of a method that draws."""
  output = source.parent / "noise"
  _run(source, output, "gaussian_noise", {"std": 0.1})
  return output, _bytes(output)


def test_batches_change_nothing(source, noisy):
  output = source.parent / "one_by_one"
  _run(source, output, "gaussian_noise", {"std": 0.1}, sample_batch_size=1)
  assert _bytes(output) == noisy[1]


def test_a_run_goes_on_and_other_settings_do_not(source, noisy):
  output, finished = noisy
  # As after a kill between two pictures: no manifest, the mark of an unfinished folder, one less.
  (output / "manifest.json").unlink()
  (output / ".incomplete").write_text(json.dumps({"files": list(finished)}))
  (output / "a.png").unlink()
  kept = (output / "tiny.png").stat().st_mtime_ns
  with pytest.raises(ConfigError, match="other settings: choose another --workdir"):
    _run(source, output, "gaussian_noise", {"std": 0.2})
  _run(source, output, "gaussian_noise", {"std": 0.1})
  assert _bytes(output) == finished
  assert (output / "tiny.png").stat().st_mtime_ns == kept
  assert (output / "manifest.json").exists() and not (output / ".incomplete").exists()
  _run(source, output, "gaussian_noise", {"std": 0.2}, overwrite=True)
  assert all(new != finished[name] for name, new in _bytes(output).items())


def test_sizes_that_a_method_cannot_take_are_skipped(source):
  made = _run(source, source.parent / "blurred", "gaussian_blur", {"sigma": 2.0})
  assert {entry["file"] for entry in made["images"]} == {
    "a.png", "b/c.png", "b/d.png", "turned.png", "glass.png"
  }  # fmt: skip
  ((file, reason),) = made["origin"]["skipped"]
  assert file == "tiny.png" and "does not fit images of 2x3" in reason
  with pytest.raises(ConfigError, match="tiny.png: .*does not fit"):
    _run(source, source.parent / "strict", "gaussian_blur", {"sigma": 2.0}, strict=True)
  with pytest.raises(ConfigError, match="does not fit images of"):
    _run(source, source.parent / "strict", "gaussian_blur", {"sigma": 20.0})
  assert not (source.parent / "strict").exists()


def test_only_what_is_missing_is_made(source, tmp_path):
  folder, output = tmp_path / "in", tmp_path / "out"
  shutil.copytree(source, folder)
  _run(folder, output, "gaussian_noise", {"std": 0.1})
  whole = _bytes(output)
  _run(folder, output, "gaussian_noise", {"std": 0.1})
  assert _bytes(output) == whole
  (output / "a.png").unlink()
  (folder / "tiny.png").unlink()
  shutil.copy(source / "glass.png", folder / "added.png")
  kept = (output / "b" / "c.png").stat().st_mtime_ns
  with pytest.raises(OutputError, match="finished output already"):
    _run(folder, output, "gaussian_noise", {"std": 0.2})
  made = _run(folder, output, "gaussian_noise", {"std": 0.1})
  files = _bytes(output)
  assert {name: files[name] for name in whole} == whole  # tiny.png, too.
  assert set(files) == {*whole, "added.png"} == {entry["file"] for entry in made["images"]}
  assert (output / "b" / "c.png").stat().st_mtime_ns == kept


def test_grey_pictures_stay_grey(tmp_path):
  (tmp_path / "in").mkdir()
  page = np.random.default_rng(0).integers(0, 256, (16, 20)).astype(np.uint8)
  Image.fromarray(page).save(tmp_path / "in/page.png")
  Image.fromarray(np.stack([page] * 3, -1)).save(tmp_path / "in/three.png")
  (tmp_path / "in/page.txt").write_text("a page")
  _run(tmp_path / "in", tmp_path / "out", "gaussian_noise", {"std": 0.1})
  with Image.open(tmp_path / "out/page.png") as saved:
    assert saved.mode == "L" and np.asarray(saved).std() > 0
  with Image.open(tmp_path / "out/three.png") as saved:
    pixels = np.asarray(saved)
    assert saved.mode == "RGB" and (pixels == pixels[..., :1]).all()
  assert (tmp_path / "out/page.txt").read_text() == "a page"
