"""Pictures of any size: files keep what they had, masks hold exactly, runs go on, groups agree."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms

from experiments.configs import common
from udp_jax import protections
from udp_jax.data import batches, masks, picture_files, picture_folder
from udp_jax.data.images import read_image
from udp_jax.data.verify import verify
from udp_jax.errors import ConfigError, OutputError, Preempted
from udp_jax.models.context import Model
from udp_jax.ops import bands
from udp_jax.ops.tiles import plan
from udp_jax.protections.base import run
from udp_jax.runtime import loop
from udp_jax.stages import rounds, tiles
from udp_jax.stages.tiles import Pictures
from udp_jax.studies import build
from udp_jax.studies import pictures as studies
from udp_jax.studies.build import Study

pytestmark = pytest.mark.usefixtures("built_once")

TITLE = 0x010E
TILING = tiles.Tiling(8, 2)


def _photograph(seed: int, height: int, width: int) -> np.ndarray:
  y, x, c = np.mgrid[:height, :width, :3]
  values = 128 + 90 * np.sin(0.2 * (seed % 5 + 1) * x + 0.13 * y + seed + c)
  return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Five files: one pixel, a large one, one turned by EXIF, one with a profile, one with alpha."""
  folder = tmp_path_factory.mktemp("pictures")
  (folder / "sub").mkdir()
  Image.fromarray(_photograph(0, 1, 1)).save(folder / "dot.png")
  Image.fromarray(_photograph(1, 29, 37)).save(folder / "large.bmp")
  exif = Image.Exif()
  exif[0x0112], exif[TITLE] = 6, "a title"
  Image.fromarray(_photograph(2, 13, 30)).save(folder / "turned.jpg", exif=exif, quality=95)
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  Image.fromarray(_photograph(3, 8, 8)).save(folder / "sub" / "profile.tif", icc_profile=profile)
  alpha = np.full((20, 17, 1), 255, np.uint8)
  alpha[:9], alpha[9:12] = 0, 90
  glass = np.concatenate([_photograph(4, 20, 17), alpha], -1)
  Image.fromarray(glass).save(folder / "sub" / "glass.png")
  return folder


@pytest.fixture
def config():
  config = common.study("a test")
  config.radius_255, config.step_size_255, config.num_rounds = 12.0, 3.0, 3
  config.global_batch_size = 32
  config.checkpoint.every_rounds = 1
  config.protections.udp.update({"train_steps": 2, "perturb_steps": 1, "start": "sign"})
  config.protections.advdm.num_rounds = 3
  return config


class Fixed(NamedTuple):
  model: Any
  params: Any


@pytest.fixture(scope="module")
def fixed(gaussian_model) -> Fixed:
  """A model on 8x8 pictures, and trained parameters for it."""
  return Fixed(gaussian_model, gaussian_model.init(jax.random.key(0)))


def _protect(config, row, folder, place: Path, fixed: Fixed, *, tiling=TILING, **options):
  found = picture_files.list_pictures(folder)
  workdir = options.pop("workdir", place.parent / f"{place.name}.work")
  model = Model(fixed.model, fixed.params if row == "advdm" else None)
  changes = {"overwrite": options.pop("overwrite", False)}
  study = Study(config, workdir, model, build.make_mesh(config), progress=False)
  pictures = Pictures(found, tiling, workdir, **options)
  return studies.protect_row(study, row, pictures, place, **changes)


def _files(place: Path) -> dict[str, bytes]:
  return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*.png")}


@pytest.fixture(scope="module")
def protected(folder: Path, fixed: Fixed, tmp_path_factory: pytest.TempPathFactory):
  """The folder protected by AdvDM, three pictures at a time, undisturbed: (output, manifest)."""
  config = common.study("a test")
  config.radius_255, config.step_size_255 = 12.0, 3.0
  config.protections.advdm.num_rounds = 3
  output = tmp_path_factory.mktemp("protected") / "out"
  tiling = TILING._replace(files_at_a_time=3)
  return output, _protect(config, "advdm", folder, output, fixed, tiling=tiling)


def test_files_keep_what_they_had_and_the_budget(protected, folder: Path) -> None:
  output, made = protected
  names = ["dot.png", "large.png", "sub/glass.png", "sub/profile.png", "turned.png"]
  assert sorted(_files(output)) == names == [entry["file"] for entry in made["images"]]
  for clean in (folder, Path(f"{output}.work") / "clean"):
    report = verify(clean, output, 12)
    assert report.ok and report.checked == 5
  assert not (output / ".incomplete").exists()
  written = json.loads((output / "manifest.json").read_text())
  assert written["images"] == made["images"] and written["complete"] is True
  assert written["method"] == "advdm" and written["radius_255"] == 12
  assert written["tiling"] == {
    "tile_size": 8,
    "overlap": 2,
    "files_at_a_time": 3,
    "masked": False,
  }
  sizes = [(entry["width"], entry["height"]) for entry in made["images"]]
  assert sizes == [(1, 1), (37, 29), (17, 20), (8, 8), (13, 30)]
  assert 6 <= made["worst"]["max_abs_255"] <= 12
  for entry in made["images"]:
    original = read_image(next(folder.glob(f"{entry['file'].removesuffix('.png')}.*")))
    saved = read_image(output / entry["file"])
    difference = np.abs(saved.pixels.astype(int) - original.pixels)
    assert entry["max_abs_255"] == difference.max() > 0
    psnr = 10 * np.log10(255**2 / np.mean(np.square(difference)))
    assert entry["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert saved.icc_profile == original.icc_profile
    if original.alpha is not None:
      np.testing.assert_array_equal(saved.alpha, original.alpha)
  assert read_image(output / "sub" / "profile.png").icc_profile
  with Image.open(output / "turned.png") as turned:
    assert turned.size == (13, 30)
    assert turned.getexif()[TITLE] == "a title" and 0x0112 not in turned.getexif()


def test_transparent_pixels_do_not_change_and_faint_ones_do(protected, folder: Path) -> None:
  before = read_image(folder / "sub" / "glass.png").pixels
  after = read_image(protected[0] / "sub" / "glass.png").pixels
  changed = (before != after).any(axis=-1)
  assert not changed[:9].any()
  assert changed[9:].mean() > 0.9


@pytest.mark.parametrize(
  "row", ["advdm", "random_noise", pytest.param("udp", marks=pytest.mark.slow)]
)
def test_delta_is_zero_outside_of_the_mask(row, config, folder, fixed, tmp_path: Path) -> None:
  (tmp_path / "masks" / "sub").mkdir(parents=True)
  found = picture_files.list_pictures(folder)
  white = {}
  for file in found.files:
    mask = np.zeros((file.height, file.width), np.uint8)
    mask[file.height // 3 :, : -(-file.width // 2)] = 255
    white[file.name] = mask > 0
    Image.fromarray(mask).save(tmp_path / "masks" / f"{file.name}.png")
  mask_files = masks.find(tmp_path / "masks", found.files)
  made = _protect(config, row, folder, tmp_path / "out", fixed, mask_files=mask_files)
  # A surrogate learns from all pictures at once.
  assert made["tiling"]["files_at_a_time"] == (5 if row == "udp" else 8)
  assert made["tiling"]["masked"]
  for file, entry in zip(found.files, made["images"]):
    before = read_image(file.path).pixels
    changed = (read_image(tmp_path / "out" / entry["file"]).pixels != before).any(axis=-1)
    assert not changed[~white[file.name]].any()
    if file.name == "large":
      assert changed[white[file.name]].mean() > 0.8


def test_no_step_leaves_the_mask(fixed: Fixed) -> None:
  mask = np.zeros((2, 8, 8, 1), np.uint8)
  mask[:, 2:5, 3:] = 1
  data = batches.make_batches(np.full((2, 8, 8, 3), 100, np.uint8), 2, mask=mask)
  method = protections.build("advdm", fixed.model, {"radius_255": 12, "step_size_255": 3})
  for num_rounds in (0, 2):
    images, _ = run(method, jax.random.key(0), data, fixed.params, num_rounds=num_rounds)
    moved = np.abs(np.asarray(images[0]) - 100 / 255) > 1e-6
    np.testing.assert_array_equal(moved.any(axis=-1), mask[..., 0] == 1)


def _grey_and_colour() -> np.ndarray:
  """(2, 8, 8, 3): a grey picture and one in colour."""
  colour = _photograph(3, 8, 8)
  return np.stack([np.repeat(colour[..., :1], 3, -1), colour])


@pytest.mark.parametrize(
  ("method", "options", "numbers"),
  [
    # Where all methods that take steps begin; and after two rounds.
    ("advdm", {"step_size_255": 3, "start": "sign"}, (0, 2)),
    pytest.param(
      *("udp", {"step_size_255": 3, "train_steps": 2, "start": "sign"}, (2,)),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *("udp", {"step_size_255": 3, "train_steps": 2, "start": "sign", "joint_gradients": True}),
      (2,),
      marks=pytest.mark.slow,
    ),
    ("random_noise", {}, (0, 2)),
  ],
)
def test_a_grey_picture_gets_one_change_in_every_step(
  fixed: Fixed, method, options, numbers
) -> None:
  levels = _grey_and_colour()
  grey = np.array([1, 0], np.uint8)
  built = protections.build(method, fixed.model, {"radius_255": 12} | options)
  params = fixed.params if method == "advdm" else None
  made = {}
  for number in numbers:
    for name, leaf in (("told", grey), ("untold", None)):
      data = batches.make_batches(levels, 2, grey=leaf)
      found, _ = run(built, jax.random.key(0), data, params, num_rounds=number)
      made[name] = 255 * np.asarray(found[0]) - levels
    change = made["told"][0]
    np.testing.assert_allclose(change[..., 0], change[..., 1], atol=1e-4)
    np.testing.assert_allclose(change[..., 0], change[..., 2], atol=1e-4)
    # As strong as one that is free in every channel, not the mean of three.
    assert np.abs(change).mean() > 0.75 * np.abs(made["untold"][0]).mean()
    assert np.abs(change).max() <= 12 + 1e-3
    if method != "udp":  # The surrogate sees the other picture.
      np.testing.assert_array_equal(made["told"][1], made["untold"][1])


def test_a_grey_pictures_steps_follow_the_mean_of_its_gradient(fixed: Fixed) -> None:
  """A step from zero is a whole one everywhere, not a third where the channels disagree."""
  data = batches.make_batches(_grey_and_colour(), 2, grey=np.array([1, 0], np.uint8))
  options = {"radius_255": 12, "step_size_255": 3, "start": "zero"}
  method = protections.build("advdm", fixed.model, options)
  images, _ = run(method, jax.random.key(0), data, fixed.params, num_rounds=1)
  change = 255 * np.asarray(images[0, 0]) - _grey_and_colour()[0]
  assert (np.abs(np.abs(change) - 3) < 1e-3).mean() > 0.99


@pytest.mark.parametrize("row", ["advdm", "random_noise"])
def test_grey_files_stay_grey(row: str, config, fixed: Fixed, tmp_path: Path) -> None:
  source = tmp_path / "in"
  source.mkdir()
  page = _photograph(2, 21, 17)[..., 0]
  curve = b"GRAY" + bytes(96)
  profile = bytes(16) + curve
  Image.fromarray(page).save(source / "page.png", icc_profile=profile)
  Image.fromarray(np.stack([page, np.full_like(page, 200)], -1)).save(source / "glass.png")
  Image.fromarray(page > 128).save(source / "line.png")
  Image.fromarray(np.stack([page] * 3, -1)).save(source / "three.png")
  Image.fromarray(_photograph(1, 20, 20)).save(source / "colour.png")
  made = _protect(config, row, source, tmp_path / "out", fixed)
  assert verify(source, tmp_path / "out", 12).ok
  modes = {"page": "L", "glass": "LA", "line": "L", "three": "RGB", "colour": "RGB"}
  for name, mode in modes.items():
    with Image.open(tmp_path / "out" / f"{name}.png") as saved:
      assert saved.mode == mode
      assert saved.info.get("icc_profile") == (profile if name == "page" else None)
    change = read_image(tmp_path / "out" / f"{name}.png").pixels.astype(int)
    change -= read_image(source / f"{name}.png").pixels
    alike = (change == change[..., :1]).all()
    assert alike == (name != "colour")
    # Half of what black and white would change is outside of the range.
    assert np.abs(change).mean() > (1 if name == "line" else 5)
  notes = {entry["file"]: entry.get("notes") for entry in made["images"]}
  assert notes["line.png"] == ["1 bit a pixel saved as 8-bit grey"]
  assert notes["page.png"] is None


def test_no_preview_leaves_and_everything_else_does(config, fixed: Fixed, tmp_path: Path) -> None:
  source, output = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  Image.fromarray(_photograph(1, 20, 20)).save(source / "inner.jpg")
  preview = (source / "inner.jpg").read_bytes()
  exif = Image.Exif()
  exif[0x013B] = "An Artist"
  exif.get_ifd(0x8825)[2] = (59.0, 54.0, 0.0)
  exif.get_ifd(0x8769)[0x927C] = preview
  xmp = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
    b' plus:DataMining="DMI-PROHIBITED"/></rdf:RDF></x:xmpmeta>'
  )
  picture = Image.fromarray(_photograph(2, 20, 20))
  picture.save(source / "c.jpg", exif=exif, xmp=xmp, dpi=(300, 300), comment=b"by hand")
  Image.fromarray(_photograph(4, 20, 20)).save(source / "c.png")
  (source / "inner.jpg").unlink()
  (source / "metadata.jsonl").write_text('\ufeff{"file_name": "c.jpg", "text": "a page"}\n')
  (source / "c.txt").write_text("tags")
  (source / "notes.doc").touch()
  made = _protect(config, "random_noise", source, output, fixed)
  assert sorted(path.name for path in output.iterdir()) == [
    *("c.jpg.png", "c.jpg.txt", "c.png", "c.txt", "manifest.json", "metadata.jsonl"),
  ]
  content = (output / "c.jpg.png").read_bytes()
  assert content.count(b"\xff\xd8\xff") == 0 and xmp in content and b"An Artist" in content
  with Image.open(output / "c.jpg.png") as saved:
    assert round(saved.info["dpi"][0]) == 300 and saved.info["Comment"] == "by hand"
    assert not saved.getexif().get_ifd(0x8825)
  line = json.loads((output / "metadata.jsonl").read_text())
  assert line == {"file_name": "c.jpg.png", "text": "a page"}
  assert [entry["file"] for entry in made["captions"]] == ["c.jpg.txt", "c.txt", "metadata.jsonl"]
  kept = (output / "c.png").stat().st_mtime_ns
  (entry,) = [entry for entry in made["images"] if entry["file"] == "c.jpg.png"]
  assert len(entry["notes"]) == 2 and "GPS position left out" in entry["notes"][1]
  assert made["origin"]["notes"] == dict.fromkeys(entry["notes"], 1)
  assert made["origin"]["ignored_kinds"] == {".doc": 1}
  # Captions are those of the source as it is now.
  (source / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "a square"}\n')
  (source / "c.txt").unlink()
  (source / "c.caption").write_text("a square")
  _protect(config, "random_noise", source, output, fixed)
  assert (output / "c.png").stat().st_mtime_ns == kept
  line = json.loads((output / "metadata.jsonl").read_text())
  assert line == {"file_name": "c.png", "text": "a square"}
  assert {path.name for path in output.glob("c.*")} == {
    *("c.jpg.png", "c.jpg.caption", "c.png", "c.caption"),
  }
  (source / "metadata.jsonl").unlink()
  _protect(config, "random_noise", source, output, fixed)
  assert not (output / "metadata.jsonl").exists()
  # Somebody's own text is not replaced, and neither is it with --overwrite.
  (output / "c.caption").write_text("mine")
  with pytest.raises(OutputError, match="c.caption is not the file"):
    _protect(config, "random_noise", source, output, fixed, overwrite=True)
  assert (output / "c.caption").read_text() == "mine"


def test_a_name_that_is_not_utf8_is_protected(config, fixed: Fixed, tmp_path: Path) -> None:
  source = tmp_path / "in"
  source.mkdir()
  Image.fromarray(_photograph(2, 20, 20)).save(source / "a.png")
  os.rename(source / "a.png", os.fsencode(source) + b"/" + "イ".encode("shift_jis") + b".png")
  made = _protect(config, "random_noise", source, tmp_path / "out", fixed)
  assert [entry["file"] for entry in made["images"]] == ["%83C.png"]
  assert verify(source, tmp_path / "out", 12).ok


@pytest.mark.slow
def test_noise_does_not_depend_on_groups_and_shards(config, folder, fixed, tmp_path: Path) -> None:
  _protect(config, "random_noise", folder, tmp_path / "whole", fixed)
  tiling = TILING._replace(files_at_a_time=3)
  _protect(config, "random_noise", folder, tmp_path / "groups", fixed, tiling=tiling)
  assert _files(tmp_path / "whole") == _files(tmp_path / "groups")
  config.performance.shard_batches = 2
  _protect(config, "random_noise", folder, tmp_path / "shards", fixed)
  assert _files(tmp_path / "whole") == _files(tmp_path / "shards")


def test_a_fixed_model_perturbs_the_same_in_other_groups(
  protected, config, folder, fixed, tmp_path: Path
) -> None:
  """Up to a sign here and there: sums over another number of tiles round differently."""
  _protect(config, "advdm", folder, tmp_path / "out", fixed)
  for name in _files(protected[0]):
    first, second = (read_image(place / name).pixels for place in (protected[0], tmp_path / "out"))
    assert (first == second).mean() > 0.99


def test_the_time_left_counts_the_tiles_of_all_groups(
  config, folder, fixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Every round takes one second of a clock that ticks when it is read."""
  said: list[tuple[str, float]] = []
  clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
  monkeypatch.setattr(loop, "time", clock)
  monkeypatch.setattr(loop, "say_left", lambda label, seconds: said.append((label, seconds)))
  tiling = TILING._replace(files_at_a_time=2)
  _protect(config, "advdm", folder, tmp_path / "out", fixed, tiling=tiling)
  found = picture_files.list_pictures(folder).files
  counts = [plan(file.height, file.width, 8, overlap=2).num_tiles for file in found]
  groups = [sum(counts[start : start + 2]) for start in (0, 2, 4)]
  rounds_left = {
    f"protect advdm {n + 1}/3": pytest.approx(3 * sum(groups[n:]) / groups[n] - 1) for n in range(3)
  }
  assert {label: seconds for label, seconds in said if "/" in label} == rounds_left
  done = {label: seconds for label, seconds in said if "/" not in label}
  assert [*done] == [f"protect advdm: {n} of 5 pictures are done" for n in (2, 4, 5)]
  assert [seconds > 0 for seconds in done.values()] == [True, True, False]


def _stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
  """The next runs are asked to stop (SIGTERM) in their `number`-th round."""
  made, left = rounds.resident, [number]

  def resident(*args, **options):
    inner = made(*args, **options)

    def advance(state, position):
      left[0] -= 1
      if left[0] == 0:
        signal.raise_signal(signal.SIGTERM)
      return inner.advance(state, position)

    return inner._replace(advance=advance)

  monkeypatch.setattr(rounds, "resident", resident)


@pytest.mark.slow
def test_stopped_run_goes_on_to_the_same_files(
  protected, config, folder, fixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  output, tiling = tmp_path / "out", TILING._replace(files_at_a_time=3)
  with monkeypatch.context() as context:
    _stop_after(context, 5)  # The second of three rounds of the second of two groups.
    with pytest.raises(Preempted, match=r"^protect advdm 2/2: stopped at round 2 of 3 and saved"):
      _protect(config, "advdm", folder, output, fixed, tiling=tiling)
  # The first group's files are there, and a reader is told that others are not.
  finished = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
  assert len(finished) == 3 and (output / ".incomplete").exists()
  assert not verify(folder, output, 12).ok

  write, left = picture_folder.write, [1]

  def killed(place, *args, **options):
    if place == output:
      left[0] -= 1
      if left[0] < 0:
        raise KeyboardInterrupt
    return write(place, *args, **options)

  with monkeypatch.context() as context:
    context.setattr(picture_folder, "write", killed)
    with pytest.raises(KeyboardInterrupt):  # While the second group's files are written.
      _protect(config, "advdm", folder, output, fixed, tiling=tiling)
  assert len(_files(output)) == 4
  with monkeypatch.context() as context:
    _stop_after(context, 1)  # No round is left to do, only a file to write.
    _protect(config, "advdm", folder, output, fixed, tiling=tiling)
  assert _files(output) == _files(protected[0])
  assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
  assert not (output / ".incomplete").exists()
  assert not list(tmp_path.rglob("checkpoints"))


def test_changed_and_lost_files_are_made_again(
  config, folder, fixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  output = tmp_path / "out"
  first = _protect(config, "random_noise", folder, output, fixed)
  whole = _files(output)
  again = _protect(config, "random_noise", folder, output, fixed)
  assert again["created"] == first["created"] and _files(output) == whole
  (output / "turned.png").unlink()
  (output / "dot.png").unlink()
  again = _protect(config, "random_noise", folder, output, fixed, overwrite=True)
  assert _files(output) == whole and again["images"] == first["images"]


def _copy(folder: Path, place: Path) -> Path:
  shutil.copytree(folder, place)
  return place


def test_only_what_is_missing_is_made(config, folder, fixed, tmp_path: Path) -> None:
  """Pictures added, changed, gone; files deleted and emptied; metadata changed: one run for all."""
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  first = _protect(config, "random_noise", source, output, fixed)
  whole = _files(output)
  times = {path.name: path.stat().st_mtime_ns for path in output.rglob("*.png")}

  (output / "sub" / "glass.png").unlink()
  (output / "dot.png").write_bytes(b"")
  Image.fromarray(_photograph(7, 9, 12)).save(source / "added.png")
  Image.fromarray(_photograph(8, 29, 37)).save(source / "large.bmp")
  (source / "sub" / "profile.tif").unlink()
  turned = source / "turned.jpg"
  turned.write_bytes(turned.read_bytes().replace(b"a title", b"b title"))

  again = _protect(config, "random_noise", source, output, fixed)
  files = _files(output)
  assert set(files) == {*whole, "added.png"} == {entry["file"] for entry in again["images"]}
  assert {name for name in whole if files[name] != whole[name]} == {"large.png", "turned.png"}
  # What is of a picture that is gone stays, clean reference and all.
  assert (output / "sub/profile.png").stat().st_mtime_ns == times["profile.png"]
  clean = tmp_path / "out.work" / "clean"
  assert (clean / "sub/profile.png").exists()
  report = verify(clean, output, 12)
  assert report.ok and report.checked == 6
  with Image.open(output / "turned.png") as image:
    assert image.getexif()[TITLE] == "b title"
  before = next(e for e in first["images"] if e["file"] == "turned.png")
  after = next(e for e in again["images"] if e["file"] == "turned.png")
  assert before["source"]["pixels_sha256"] == after["source"]["pixels_sha256"]
  assert before["source"]["sha256"] != after["source"]["sha256"]
  # The reference of the picture that changed is the last copy of what it was.
  (earlier,) = (tmp_path / "out.work" / "earlier").iterdir()
  np.testing.assert_array_equal(read_image(earlier).pixels, read_image(folder / "large.bmp").pixels)
  whole = _files(output)
  _protect(config, "random_noise", source, output, fixed)
  assert _files(output) == whole


def test_what_is_added_does_not_need_the_work_folder(config, folder, fixed, tmp_path: Path) -> None:
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  _protect(config, "random_noise", source, output, fixed)
  whole = _files(output)
  shutil.rmtree(tmp_path / "out.work")
  Image.fromarray(_photograph(7, 9, 12)).save(source / "added.png")
  _protect(config, "random_noise", source, output, fixed)
  assert {name: _files(output)[name] for name in whole} == whole
  assert verify(source, output, 12).checked == 6


def test_overwriting_keeps_what_was_made_of_pictures_that_are_gone(
  config, folder, fixed, tmp_path: Path
) -> None:
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  _protect(config, "random_noise", source, output, fixed)
  whole = _files(output)
  shutil.rmtree(tmp_path / "out.work")
  (source / "dot.png").unlink()
  with pytest.raises(OutputError, match=r"dot\.png may be the last copy .*\(1 such files\)"):
    _protect(config, "random_noise", source, output, fixed, overwrite=True)
  assert _files(output) == whole and not (tmp_path / "out.work" / "clean").exists()
  # Another picture of that name, without --overwrite: an extension would replace the file.
  Image.fromarray(_photograph(9, 7, 7)).save(source / "dot.png")
  with pytest.raises(OutputError, match=r"dot\.png may be the last copy"):
    _protect(config, "random_noise", source, output, fixed)
  assert _files(output) == whole
  shutil.copy(folder / "dot.png", source / "sub" / "copy.png")  # The picture is in the input.
  _protect(config, "random_noise", source, output, fixed)
  assert set(_files(output)) == {*whole, "sub/copy.png"}


@pytest.mark.slow
def test_a_folder_is_extended_by_any_spelling(config, folder, fixed, tmp_path: Path) -> None:
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  spelled = [str(source), f"{source}/", f"folder:{source}", os.path.relpath(source)]
  for number, text in enumerate(spelled):
    Image.fromarray(_photograph(number, 7, 9)).save(source / f"added{number}.png")
    config.data.source = text
    made = _protect(config, "random_noise", source, output, fixed)
    assert len(made["images"]) == 6 + number
    said = (output / "manifest.json").read_text()
    assert str(tmp_path) not in said and made["config"]["data"]["source"] == "in"
    assert made["origin"]["source"] == "folder in"
    assert all(set(e["source"]) == {"file", "sha256", "pixels_sha256"} for e in made["images"])
  # Older versions wrote whole paths.
  made["config"]["data"]["source"] = str(source)
  made["origin"]["source"] = f"folder {source}"
  (output / "manifest.json").write_text(json.dumps(made))
  Image.fromarray(_photograph(7, 9, 12)).save(source / "last.png")
  shutil.rmtree(tmp_path / "out.work")
  made = _protect(config, "random_noise", source, output, fixed)
  assert len(made["images"]) == 10 and str(tmp_path) not in (output / "manifest.json").read_text()
  config.data.source = str(tmp_path / "other")
  with pytest.raises(OutputError, match="finished output already"):
    _protect(config, "random_noise", source, output, fixed)


def test_other_settings_do_not_extend(config, folder, fixed, tmp_path: Path) -> None:
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  _protect(config, "random_noise", source, output, fixed)
  Image.fromarray(_photograph(7, 9, 12)).save(source / "added.png")
  before = _files(output)
  for row, field, value, tiling in (
    ("random_noise", "seed", 5, TILING),
    ("random_noise", "radius_255", 9.0, TILING),
    ("random_noise", "seed", 0, TILING._replace(overlap=3)),
    ("advdm", "seed", 0, TILING),
  ):
    other = config.copy_and_resolve_references()
    other[field] = value
    with pytest.raises(OutputError, match="finished output already"):
      _protect(other, row, source, output, fixed, tiling=tiling)
  assert _files(output) == before


def test_a_mask_or_a_caption_belongs_to_the_picture(config, folder, fixed, tmp_path: Path) -> None:
  output = tmp_path / "out"
  _protect(config, "random_noise", folder, output, fixed, texts={"dot.png": "a", "large.bmp": "b"})
  before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
  _protect(config, "random_noise", folder, output, fixed, texts={"dot.png": "a", "large.bmp": "c"})
  made = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
  assert made == ["large.png"]


@pytest.mark.slow
def test_a_killed_extension_goes_on(
  config, fixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Of pictures that are gone too, nothing is lost."""
  source, output = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  for number in range(4):  # All of one size: every pair is the same program.
    Image.fromarray(_photograph(number, 9, 12)).save(source / f"first{number}.png")
  tiling = TILING._replace(files_at_a_time=2)
  _protect(config, "advdm", source, output, fixed, tiling=tiling)
  whole = _files(output)
  (source / "first0.png").unlink()
  for number in range(3):
    Image.fromarray(_photograph(number, 9, 12)).save(source / f"added{number}.png")
  with monkeypatch.context() as context:
    _stop_after(context, 5)  # In the second of two new groups.
    with pytest.raises(Preempted, match="protect advdm 2/2: stopped at round 2"):
      _protect(config, "advdm", source, output, fixed, tiling=tiling)
  assert (output / ".incomplete").exists() and set(whole) < set(_files(output))
  # More pictures meanwhile: the group that was begun stays what its checkpoint is of.
  Image.fromarray(_photograph(9, 9, 12)).save(source / "added0b.png")
  made = _protect(config, "advdm", source, output, fixed, tiling=tiling)
  assert {name: _files(output)[name] for name in whole} == whole
  assert len(made["images"]) == 8 and not (output / ".incomplete").exists()
  assert not list(tmp_path.rglob("checkpoints"))
  for number in range(3):
    assert (tmp_path / "out" / f"added{number}.png").exists()


def test_a_lost_file_of_a_method_that_trains_is_made_again(
  config, folder, fixed, tmp_path: Path
) -> None:
  source, output = _copy(folder, tmp_path / "in"), tmp_path / "out"
  _protect(config, "udp", source, output, fixed)
  whole, kept = _files(output), (output / "large.png").stat().st_mtime_ns
  (output / "turned.png").unlink()
  _protect(config, "udp", source, output, fixed)
  assert _files(output) == whole and (output / "large.png").stat().st_mtime_ns == kept
  # Another picture changes all of them.
  Image.fromarray(_photograph(7, 9, 12)).save(source / "added.png")
  with pytest.raises(OutputError, match="finished output already"):
    _protect(config, "udp", source, output, fixed)
  assert _files(output) == whole


def test_nothing_is_left_of_a_run_that_failed_at_once(
  config, folder, fixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def full(place, *args, **options):
    raise OutputError(f"cannot write {place}")

  workdir = tmp_path / "work"
  _protect(config, "random_noise", folder, tmp_path / "first", fixed, workdir=workdir)
  monkeypatch.setattr(picture_folder, "write", full)
  with pytest.raises(OutputError, match="cannot write"):
    _protect(config, "random_noise", folder, tmp_path / "b" / "out", fixed, workdir=workdir)
  assert not (tmp_path / "b").exists()


def test_conditioning_belongs_to_the_picture(config, folder, fixed, tmp_path: Path) -> None:
  seen = {}

  def apply(params, x_t, timesteps, cond=None, key=None):
    seen["shape"] = cond.shape
    # Two pictures' loss is flat: they stay where delta begins, at zero.
    return fixed.model.apply(params, x_t, timesteps) * cond[..., None]

  config.protections.advdm.start = "zero"
  model = Fixed(fixed.model._replace(apply=apply), fixed.params)
  _protect(
    config,
    "advdm",
    folder,
    tmp_path / "out",
    model,
    cond_of=lambda file: np.full((1, 1), file.name != "large", np.float32),
  )
  assert seen["shape"] == (32, 1, 1)
  for name, moved in (("large", False), ("turned", True)):
    before = next(folder.glob(f"{name}.*"))
    assert (read_image(before).pixels != read_image(tmp_path / f"out/{name}.png").pixels).any() == (
      moved
    )


@pytest.mark.parametrize("method", ["advdm", "random_noise"])
def test_three_tiles_stay_in_the_band_and_have_no_seam(
  method, config, fixed: Fixed, tmp_path: Path
) -> None:
  (tmp_path / "in").mkdir()
  y, x, c = np.mgrid[:32, :80, :3]
  clean = np.round(128 + 50 * np.sin(0.05 * x + 0.11 * y + c)).astype(np.uint8)
  Image.fromarray(clean).save(tmp_path / "in" / "wide.png")
  params = {"mean": np.zeros((32, 32, 3), np.float32), "log_spread": np.zeros(3, np.float32)}
  large = Fixed(fixed.model._replace(shape=(32, 32, 3), image_shape=(32, 32, 3)), params)
  tiling = tiles.Tiling(32, 8)
  assert plan(32, 80, 32, overlap=8).num_tiles == 3
  made = {}
  for name, band in (
    ("low", {"band": "gaussian", "band_sigma": 2.0}),
    ("rough", {"band": "", "band_sigma": 3.0}),
  ):
    config.protections.update({method: band | {"num_rounds": 6}})
    place = tmp_path / name
    _protect(config, method, tmp_path / "in", place, large, tiling=tiling)
    levels = read_image(place / "wide.png").pixels.astype(np.float32) - clean
    made[name] = levels[None]
    assert np.abs(levels).max() <= 12
  low, rough = (float(bands.energy_share(levels, 0.5, 2.0)[0]) for levels in made.values())
  assert low < 0.05 and rough > 3 * low
  assert np.sqrt(np.square(made["low"]).mean()) > 3
  # Bends of delta are as large where tiles blend as elsewhere.
  bend = np.abs(np.diff(made["low"][0], n=2, axis=1)).mean((0, 2))
  blended = np.zeros(78, bool)
  for middle in (28, 52):
    blended[middle - 5 : middle + 5] = True
  assert bend[blended].mean() < 1.5 * bend[~blended].mean()


def test_noise_has_the_size_of_the_row_that_it_imitates(
  config, folder, fixed, tmp_path: Path
) -> None:
  work = tmp_path / "work"
  theirs, ours = (work / "protected" / row for row in ("advdm", "noise"))
  config.protections.noise = {"method": "matched_noise", "of": "advdm"}
  _protect(config, "advdm", folder, theirs, fixed, workdir=work)
  made = _protect(config, "noise", folder, ours, fixed, workdir=work)
  assert made["tiling"]["overlap"] == 0 and verify(work / "clean", ours, 12.0).ok
  for name in ("large", "sub/glass"):
    clean = read_image(work / f"clean/{name}.png").pixels.astype(int)
    one, other = (read_image(place / f"{name}.png").pixels - clean for place in (theirs, ours))
    # A permutation within tiles that share pixels: as strong, and another picture.
    assert abs(np.sqrt((other**2).mean() / (one**2).mean()) - 1) < 0.15
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.5
    assert set(np.unique(other)) <= set(np.unique(one))
    assert not one[: 9 if name != "large" else 0].any()
    assert not other[: 9 if name != "large" else 0].any()


def test_what_tiles_cannot_do_is_said_before_anything_is_written(
  config, folder, fixed, tmp_path: Path
) -> None:
  for row, tiling, message in (
    ("udp_shuffled", TILING, "udp_shuffled imitates another row's pictures: it needs --resize"),
    ("udp", TILING._replace(overlap=8), r"overlap is 8: it must be in \[0, 8\)"),
    ("udp", TILING._replace(files_at_a_time=-1), "files_at_a_time must be 1 or more"),
    ("nope", TILING, "unknown method or row 'nope'"),
  ):
    with pytest.raises(ConfigError, match=message):
      _protect(config, row, folder, tmp_path / "out", fixed, tiling=tiling)
  assert not list(tmp_path.iterdir())
