"""The matrix from end to end: what appears, what is made again, what a failing cell leaves."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.studies.matrix.conftest import small
from udp_jax.data import manifest
from udp_jax.errors import ConfigError, OutputError, Preempted
from udp_jax.metrics import survival
from udp_jax.models import factory
from udp_jax.runtime import files
from udp_jax.studies import build
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import cells, measuring, plan, purifying, results, run, subject
from udp_jax.studies.matrix.plan import Cell

COMMAND = "python -m experiments.impress --config=small --workdir=here --rows=random_noise"


def make(config: Any, workdir: Path, **chosen: Any) -> dict[str, Any]:
  """Runs the matrix and writes report.json, as the entry point does."""
  from udp_jax.report import text

  finished = run.run_matrix(config, workdir, plan.make(config, **chosen), progress=False)
  report = results.build(workdir, finished, command=COMMAND)
  text.write_json(workdir / "report.json", report)
  results.write_csv(workdir / "cells.csv", report)
  return json.loads((workdir / "report.json").read_text())


@pytest.fixture(scope="module")
def config(tiny_pipeline_folder: Path) -> Any:
  return small(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def _whole(config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
  return {"workdir": tmp_path_factory.mktemp("matrix") / "run"}


@pytest.fixture
def whole(config: Any, _whole: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
  """A finished matrix and its report, made once. Copy its workdir before changing anything."""
  if "report" not in _whole:  # Not in the fixture of the module: features are replaced by function.
    _whole["report"] = make(config, _whole["workdir"])
  return _whole["workdir"], _whole["report"]


@pytest.mark.slow
def test_everything_appears(config: Any, whole: tuple[Path, dict[str, Any]]) -> None:
  workdir, report = whole
  assert report["failures"] == []
  assert [row["name"] for row in report["rows"]] == ["clean", "random_noise"]
  assert [p["name"] for p in report["purifiers"]] == ["none", "jpeg"]
  count = report["data"]["pictures"]
  assert count >= 4 and report["data"]["holdout"] == 2
  own, edits = report["tables"]
  places = [
    ("clean", "none"),
    ("clean", "jpeg"),
    ("random_noise", "none"),
    ("random_noise", "jpeg"),
  ]
  for table in (own, edits):
    assert [(entry["row"], entry["purifier"]) for entry in table["cells"]] == places
  for row, purifier in places[1::2]:
    cell = Cell(row, purifier)
    assert len(manifest.read_folder(plan.folder_of(cell, workdir))[0].images) == count
  edited = Cell("random_noise", "jpeg", "img2img", 0).folder(workdir)
  record = manifest.read_manifest(edited / "edits")
  assert record["row"] == "random_noise" and record["options"]["strength"] == 0.5


@pytest.mark.slow
def test_a_prior_that_is_not_the_attacked_model(
  config: Any, tiny_model: Any, tiny_pipeline: Any, tmp_path: Path
) -> None:
  """DiffPure and GrIDPure have it; the report and the manifests name it."""
  from udp_jax.models import factory
  from udp_jax.report import survival

  size = tiny_pipeline.model.image_shape[0]
  unet = dataclasses.replace(tiny_model.config, sample_size=size)
  factory.save(tmp_path / "other_ddpm", tiny_model.model, unet, tiny_model.params)
  config = config.copy_and_resolve_references()
  config.purifiers.update({"diffpure": {"timestep": 2}, "gridpure": {"timestep": 2}})
  config.purifiers.gridpure.num_iterations = 1
  config.purifier_model.path = str(tmp_path / "other_ddpm")
  chosen = {"purifiers": ["jpeg", "diffpure", "gridpure"], "threats": []}
  report = make(config, tmp_path / "run", **chosen)
  assert report["failures"] == []
  names = ["none", "JPEG", "DiffPure (prior: other_ddpm)", "GrIDPure (prior: other_ddpm)"]
  assert [purifier["label"] for purifier in report["purifiers"]] == names
  assert report["config"]["purifier_model"]["path"] == config.purifier_model.path
  assert survival.format_survival(report)
  made = Cell("random_noise", "diffpure").folder(tmp_path / "run") / plan.FOLDER
  record = manifest.read_manifest(made)
  assert record["purifier_model"] == "other_ddpm" and record["model"] == "model"
  # The same folder with another prior, or without one, is another matrix.
  for other in ("", str(tmp_path / "another")):
    config.purifier_model.path = other
    shutil.copytree(tmp_path / "other_ddpm", tmp_path / "another", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"purifier_model\.path"):
      make(config, tmp_path / "run", **chosen)


@pytest.mark.slow
def test_metrics_that_nobody_asked_for_do_not_appear(whole: tuple[Path, dict[str, Any]]) -> None:
  """Those of test_measuring: not in the report, and not in the files of the cells."""
  workdir, report = whole
  new = {"clip_style", "clip_likeness", "identity", "prompt_hits"}
  for table in report["tables"]:
    assert table["cells"] and not new & {metric["key"] for metric in table["metrics"]}
  files_of_cells = list(workdir.rglob(cells.FILE))
  assert len(files_of_cells) == 8
  for file in files_of_cells:
    assert not new & json.loads(file.read_text())["values"].keys()
  assert not {"clip", "face"} & report["networks"].keys()


@pytest.mark.slow
def test_numbers_are_those_of_the_files(config: Any, whole: tuple[Path, dict[str, Any]]) -> None:
  workdir, report = whole
  own, edits = (
    {(e["row"], e["purifier"]): e["metrics"] for e in table["cells"]} for table in report["tables"]
  )
  clean, protected = (
    purifying.read(Cell(row, "none"), workdir).astype(float) for row in ("clean", "random_noise")
  )
  difference = protected - clean
  rmse = np.sqrt((difference**2).mean(axis=(1, 2, 3)))
  found = own["random_noise", "none"]["rmse"]
  assert found["mean"] == pytest.approx(rmse.mean(), rel=1e-12)
  assert found["std"] == pytest.approx(rmse.std(ddof=1), rel=1e-9)
  assert found["count"] == len(clean)
  assert own["random_noise", "none"]["max_abs"]["mean"] <= config.radius_255
  assert own["clean", "none"]["latent_distance"]["mean"] == 0.0
  shift, distance = (
    own["random_noise", "none"][f"latent_{name}"] for name in ("shift", "distance")
  )
  assert shift["mean"] == pytest.approx(distance["mean"], rel=1e-5) and shift["mean"] > 0.0
  # Against what the purifier makes of the clean picture: nothing, by definition.
  assert own["clean", "jpeg"]["latent_shift"]["mean"] == 0.0
  assert own["clean", "jpeg"]["latent_distance"]["mean"] > 0.0
  # Nothing to tell apart: the clean edit against itself.
  assert edits["clean", "none"]["ssim"]["mean"] == pytest.approx(1.0)
  assert edits["clean", "none"]["psnr"]["mean"] is None
  made = manifest.read_folder(Cell("clean", "jpeg", "img2img", 0).folder(workdir) / "edits")[0]
  first = manifest.read_folder(Cell("clean", "none", "img2img", 0).folder(workdir) / "edits")[0]
  rmse = np.sqrt(((made.images.astype(float) - first.images) ** 2).mean(axis=(1, 2, 3)))
  assert edits["clean", "jpeg"]["rmse"]["mean"] == pytest.approx(rmse.mean(), rel=1e-12)


@pytest.mark.slow
def test_survival_is_that_of_the_cells(whole: tuple[Path, dict[str, Any]]) -> None:
  _, report = whole
  table = report["tables"][0]
  mean = {
    (e["row"], e["purifier"]): e["metrics"]["latent_distance"]["mean"] for e in table["cells"]
  }
  [line] = table["survival"]["latent_distance"]
  left = mean["random_noise", "jpeg"] - mean["clean", "jpeg"]
  effect = mean["random_noise", "none"] - mean["clean", "none"]
  assert line["effect"] == pytest.approx(effect)
  assert line["purifiers"]["jpeg"]["kept"] == pytest.approx(left)
  assert line["worst"] == line["mean"] == pytest.approx(left / effect)
  assert "psnr" not in report["tables"][1]["survival"]


@pytest.mark.slow
def test_csv_and_json_agree(whole: tuple[Path, dict[str, Any]]) -> None:
  workdir, report = whole
  lines = list(csv.DictReader(io.StringIO((workdir / "cells.csv").read_text())))
  found = {(x["threat"], x["row"], x["purifier"], x["metric"]): x for x in lines}
  assert len(found) == len(lines)
  count = 0
  for table in report["tables"]:
    for entry in table["cells"]:
      for key, numbers in entry["metrics"].items():
        line = found[table["threat"] or "", entry["row"], entry["purifier"], key]
        count += 1
        for name in ("mean", "std", "seed_std", "count"):
          assert line[name] == ("" if numbers[name] is None else str(numbers[name]))
        limits = numbers["interval"] or ["", ""]
        assert [line["low"], line["high"]] == [str(limit) for limit in limits]
        survived = {
          row["row"]: row["purifiers"].get(entry["purifier"], {}).get("value")
          for row in table["survival"].get(key, [])
        }.get(entry["row"])
        assert line["survival"] == ("" if survived is None else str(survived))
  assert count == len(lines) > 20
  assert any(line["survival"] for line in lines)


@pytest.mark.slow
def test_finished_matrix_makes_nothing_again(
  config: Any, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
  workdir, _ = whole
  before = {
    p: p.stat().st_mtime_ns for p in workdir.rglob("*.*") if p.name[:6] not in ("report", "cells.")
  }
  stored = (workdir / "report.json").read_bytes()

  def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("computed again")

  monkeypatch.setattr(measuring.Measures, "pictures", refuse)
  monkeypatch.setattr(measuring.Measures, "edits", refuse)
  monkeypatch.setattr(manifest, "write_folder", refuse)
  make(config, workdir)
  assert (workdir / "report.json").read_bytes() == stored
  del before[workdir / "config.json"]
  assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_interrupted_runs_end_like_an_undisturbed_one(
  config: Any,
  whole: tuple[Path, dict[str, Any]],
  tmp_path: Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """Stopped three times in the middle, and with outputs lost or half written in between."""
  workdir, _ = whole
  other = tmp_path / "run"
  shutil.copytree(workdir, other)
  for lost in (
    "purified/random_noise",
    "threats/clean/jpeg/img2img/seed0/edits",
    "threats/random_noise",
  ):
    shutil.rmtree(other / lost)
  for lost in ("report.json", "cells.csv", "threats/clean/none/img2img/seed0/cell.json"):
    (other / lost).unlink()
  # As a kill leaves it: pictures, but no manifest.
  half = other / "purified/clean/jpeg/pictures"
  marked = manifest.read_manifest(half)["images"]
  (half / manifest.MANIFEST).unlink()
  announced = [entry["file"] for entry in marked]
  files.write_json(half / manifest.INCOMPLETE, {"files": announced, "written": marked})

  writes: list[str] = []
  real = files.write_json

  def stopping(path: Any, value: Any) -> None:
    writes.append(str(path))
    if len(writes) in (4, 7):
      raise Preempted("stopped")
    real(path, value)

  monkeypatch.setattr(cells.files, "write_json", stopping)
  for _ in range(2):
    with pytest.raises(Preempted):
      make(config, other)
    assert not (other / "report.json").exists()
  make(config, other)
  assert len(writes) > 7
  for name in ("report.json", "cells.csv"):
    assert (other / name).read_bytes() == (workdir / name).read_bytes()
  pictures = {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*.png")}
  assert {p.relative_to(other): p.read_bytes() for p in other.rglob("*.png")} == pictures


@pytest.mark.slow
def test_failing_cells_are_recorded_and_the_rest_goes_on(
  config: Any,
  whole: tuple[Path, dict[str, Any]],
  tmp_path: Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  workdir, report = whole
  other = tmp_path / "run"
  shutil.copytree(workdir, other)
  for part in ("purified", "threats"):
    shutil.rmtree(other / part / "random_noise" / "jpeg")
  real = purifying.PurifiedCells.make

  def failing(self: Any, cell: Cell, *rest: Any, **options: Any) -> Any:
    if cell == Cell("random_noise", "jpeg"):
      raise ValueError("no such\nluck")
    return real(self, cell, *rest, **options)

  monkeypatch.setattr(purifying.PurifiedCells, "make", failing)
  broken = make(config, other)
  assert [f["error"] for f in broken["failures"]] == [
    "purify: ValueError: no such luck",
    "no pictures: purify: ValueError: no such luck",
  ]
  assert {(f["row"], f["purifier"]) for f in broken["failures"]} == {("random_noise", "jpeg")}
  for table, same in zip(broken["tables"], report["tables"]):
    assert table["cells"][:3] == same["cells"][:3]
    assert table["cells"][3]["metrics"] == {}
    for line in next(iter(table["survival"].values())):
      assert line["worst"] is None and line["judged"] == 0
      assert line["purifiers"]["jpeg"]["reason"] == "not measured"
  lines = list(csv.DictReader(io.StringIO((other / "cells.csv").read_text())))
  assert [x["error"] for x in lines if x["error"]] == [f["error"] for f in broken["failures"]]
  monkeypatch.setattr(purifying.PurifiedCells, "make", real)
  make(config, other)
  assert (other / "report.json").read_bytes() == (workdir / "report.json").read_bytes()


@pytest.mark.slow
def test_without_the_clean_cell_there_is_nothing_to_compare_with(
  config: Any,
  whole: tuple[Path, dict[str, Any]],
  tmp_path: Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """Numbers made without their reference would be kept, and differ from an undisturbed run's."""
  workdir, _ = whole
  other = tmp_path / "run"
  shutil.copytree(workdir, other)
  for row in ("clean", "random_noise"):
    for lost in (f"purified/{row}/jpeg", f"threats/{row}/jpeg"):
      shutil.rmtree(other / lost)
  real = purifying.PurifiedCells.make

  def failing(self: Any, cell: Cell, *args: Any, **options: Any) -> np.ndarray:
    if cell == Cell("clean", "jpeg"):
      raise ValueError("no such luck")
    return real(self, cell, *args, **options)

  monkeypatch.setattr(purifying.PurifiedCells, "make", failing)
  broken = make(config, other)
  errors = {(f["row"], f["purifier"], f["threat"]): f["error"] for f in broken["failures"]}
  nothing = "RuntimeError: the cell of the clean pictures failed: nothing to compare with"
  assert errors["random_noise", "jpeg", None] == f"measure: {nothing}"
  assert errors["random_noise", "jpeg", "img2img"] == nothing
  assert len(errors) == 4
  monkeypatch.setattr(purifying.PurifiedCells, "make", real)
  make(config, other)
  assert (other / "report.json").read_bytes() == (workdir / "report.json").read_bytes()


@pytest.mark.slow
def test_row_that_cannot_be_protected(
  config: Any,
  whole: tuple[Path, dict[str, Any]],
  tmp_path: Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  workdir, whole_report = whole
  other = tmp_path / "run"
  shutil.copytree(workdir, other)

  def failing(*args: Any, **options: Any) -> None:
    raise MemoryError("too large")

  monkeypatch.setattr(build, "protect_row", failing)
  report = make(config, other)
  for table, same in zip(report["tables"], whole_report["tables"]):
    assert table["cells"][:2] == same["cells"][:2]
    for entry in table["cells"][2:]:
      assert entry["error"].endswith("protect random_noise: MemoryError: too large")


@pytest.mark.parametrize("error", [OutputError("no space left"), Preempted("stopped")])
def test_what_ends_a_run_and_not_a_cell(error: Exception) -> None:
  with pytest.raises(type(error)):
    run._tolerated(error, "a cell")
  assert run._tolerated(ValueError("one\n two"), "a cell") == "ValueError: one two"


@pytest.mark.slow
def test_cells_can_be_chosen_and_added(
  config: Any, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
  workdir, report = whole
  other = tmp_path / "run"
  shutil.copytree(workdir, other)
  some = make(config, other, purifiers=(), threats=())
  assert [p["name"] for p in some["purifiers"]] == ["none"] and len(some["tables"]) == 1
  assert some["tables"][0]["cells"] == report["tables"][0]["cells"][::2]
  changed = config.copy_and_resolve_references()
  changed.purifiers.blur = {"method": "gaussian_blur", "sigma": 1.0}
  more = make(changed, other, purifiers=("blur", "jpeg"), threats=())
  assert [p["name"] for p in more["purifiers"]] == ["none", "blur", "jpeg"]
  assert more["failures"] == []
  assert more["tables"][0]["cells"][2] == report["tables"][0]["cells"][1]
  changed.seed = 1
  with pytest.raises(ConfigError, match="another config"):
    make(changed, other, threats=())


@pytest.mark.long
def test_pixel_model_and_training_threat(tiny_model, tmp_path: Path) -> None:
  from udp_jax.models import factory

  factory.save(tmp_path / "ddpm", tiny_model.model, tiny_model.config, tiny_model.params)
  config = small(tmp_path / "ddpm")
  config.threats.scratch = {"train_steps": 2, "sample_steps": 2, "ema_decay": 0.5}
  config.use_threats, config.use_purifiers, config.num_samples = ("scratch",), (), 4
  config.seeds = (0, 1)
  config.checkpoint.every_steps = 1
  config.global_batch_size = 4
  workdir = tmp_path / "run"
  report = make(config, workdir)
  assert report["failures"] == []
  own, learned = report["tables"]
  assert "latent_distance" not in {metric["key"] for metric in own["metrics"]}
  assert own["cells"][1]["metrics"]["denoising_loss"]["mean"] > 0
  known = {metric["key"] for metric in learned["metrics"]}
  assert {"nearest_clean", "recall", "loss_clean", "loss_holdout"} <= known
  # Four samples: a Frechet distance would be that of the count.
  assert not {"fd", "mmd"} & known
  numbers = learned["cells"][1]["metrics"]["loss_clean"]
  assert numbers["count"] == report["data"]["pictures"] and numbers["seed_std"] > 0
  # Two trainings claim nothing, of a model or of what it learned; pictures have an interval.
  assert numbers["interval"] is None
  assert learned["survival"]["loss_clean"][0]["reason"] == survival.TOO_FEW
  assert learned["against"]["loss_clean"] == []  # There are no protections.
  assert own["cells"][1]["metrics"]["denoising_loss"]["interval"] is not None
  record = json.loads(
    (Cell("clean", "none", "scratch", 0).folder(workdir) / "cell.json").read_text()
  )
  assert record["scalars"]["compared"] == 4
  for seed in (0, 1):
    folder = Cell("random_noise", "none", "scratch", seed).folder(workdir)
    assert len(manifest.read_folder(folder / "samples")[0].images) == 4
  # A finished cell keeps no checkpoints.
  assert not list((workdir / "stages" / "threats").rglob("checkpoints"))
  stored = (workdir / "report.json").read_bytes()
  shutil.rmtree(Cell("random_noise", "none", "scratch", 1).folder(workdir))
  make(config, workdir)
  assert (workdir / "report.json").read_bytes() == stored


@pytest.mark.long
def test_every_kind_of_threat(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
  """Edits of a part, class pictures, a learned word: what each of them needs is passed to it."""
  config = small(tiny_pipeline_folder)
  config.threats.img2img = {"strength": 0.5, "sample_steps": 2}
  config.threats.inpaint = {"sample_steps": 2, "mask": "surroundings", "prompt": "a cat"}
  trained = {"train_steps": 1, "sample_steps": 2}
  config.threats.dreambooth = trained | {"prompt": "a photo of a cat", "class_prompt": "a photo"}
  config.threats.dreambooth.num_class_images = 4
  config.threats.textual_inversion = trained | {"init_word": "a", "num_vectors": 2}
  config.use_threats, config.num_samples, config.use_purifiers = tuple(config.threats), 4, ()
  config.global_batch_size = 4
  workdir = tmp_path / "run"
  report = make(config, workdir)
  assert report["failures"] == []
  assert {t["name"]: t["kind"] for t in report["threats"]} == {
    "img2img": "edits",
    "inpaint": "edits",
    "dreambooth": "samples",
    "textual_inversion": "samples",
  }
  for threat, kind in (("inpaint", "edits"), ("dreambooth", "samples")):
    made = Cell("random_noise", "none", threat, 0).folder(workdir) / kind
    assert manifest.is_complete(made)
  clean = purifying.read(Cell("clean", "none"), workdir)
  edited = manifest.read_folder(Cell("clean", "none", "inpaint", 0).folder(workdir) / "edits")[0]
  # The surroundings are made anew, the middle is pasted back.
  np.testing.assert_array_equal(edited.images[:, 4:12, 4:12], clean[:, 4:12, 4:12])
  assert (edited.images != clean).any()
  assert len(manifest.read_folder(workdir / "class_pictures" / "dreambooth")[0].images) == 4
  learned = [table for table in report["tables"] if table["kind"] == "samples"]
  assert len(learned) == 2
  for entry in [entry for table in learned for entry in table["cells"]]:
    assert entry["metrics"]["loss_clean"]["mean"] > 0


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("use_purifiers", ("nope",), "unknown purifier 'nope'; known: .*jpeg"),
    ("use_threats", ("nope",), "unknown threat 'nope'; known: .*img2img"),
    ("rows", ("nope",), "unknown method or row 'nope'"),
    ("seeds", (), "config.seeds needs"),
    ("num_samples", 0, "config.num_samples is 0"),
    ("data.image_size", 64, "config.data.image_size is 64, the model is for 16"),
    ("model.path", "", "the matrix needs a trained model"),
    ("purifiers.jpeg.typo", 1, "purifier jpeg has no option 'typo'"),
    ("threats.img2img.typo", 1, "has no option 'typo'"),
    ("prompt", "a photo of {nothing}{label}", None),
  ],
)
def test_mistakes_are_found_before_anything_is_made(
  field: str, value: Any, message: str | None, config: Any, tmp_path: Path
) -> None:
  changed = config.copy_and_resolve_references()
  place = changed
  *path, last = field.split(".")
  for part in path:
    place = place[part]
  with changed.unlocked():
    place[last] = value
  if message is None:  # Built-in photographs have classes.
    plan.make(changed)
    return
  with pytest.raises(ConfigError, match=message):
    make(changed, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def _study(config, tmp_path):
  model, config = subject.load(config)
  return Study(config, tmp_path, model, build.make_mesh(config), False)


def test_protections_attack_the_model_itself_or_another(tiny_pipeline_folder, tmp_path) -> None:
  config = small(tiny_pipeline_folder)
  study = _study(config, tmp_path)
  assert run.protecting(study) is study
  other = tmp_path / "another"
  shutil.copytree(tiny_pipeline_folder, other)
  config.protection_model.path = str(other)
  study = _study(config, tmp_path)
  protecting = run.protecting(study)
  assert protecting.config.model.path == str(other)
  assert study.config.model.path == str(tiny_pipeline_folder)
  assert protecting.model.params is not study.model.params
  assert protecting.workdir == study.workdir and protecting.config.rows == study.config.rows


def test_the_other_model_has_pictures_of_the_same_size(
  tiny_pipeline_folder, tiny_model, tmp_path
) -> None:
  factory.save(tmp_path / "ddpm", tiny_model.model, tiny_model.config, tiny_model.params)
  config = small(tiny_pipeline_folder)
  config.protection_model.path = str(tmp_path / "ddpm")
  study = _study(config, tmp_path)
  with pytest.raises(ConfigError, match="config.protection_model.path: .* is a model of"):
    run.protecting(study)
