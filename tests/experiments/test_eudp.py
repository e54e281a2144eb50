"""`experiments.eudp` from end to end: what appears, what it prints, what a second call does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.models import factory

ROWS = ("clean", "random_noise", "udp", "eudp")
pytestmark = pytest.mark.slow  # Some tests show many things of one run, which takes a minute.
AGAINST = "protected against a small pixel DDPM trained on these pictures: "


@pytest.fixture
def copy(smoke, tmp_path: Path) -> Path:
  shutil.copytree(smoke.workdir, tmp_path / "run")
  return tmp_path / "run"


def _table(stdout: str) -> str:
  return stdout.partition("\n\n")[0]


def _files(folder: Path, pattern: str = "*") -> dict[str, tuple[int, bytes]]:
  """Modification times and contents, to see what was written again."""
  return {
    path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
    for path in sorted(folder.rglob(pattern))
    if path.is_file()
  }


def test_everything_appears(smoke) -> None:
  run = smoke.workdir
  config = json.loads((run / "config.json").read_text())
  assert config["rows"] == list(ROWS) and config["data"]["source"] == "builtin"
  counts = {}
  for folder in ("clean", "holdout", *(f"protected/{row}" for row in ROWS[1:])):
    manifest = json.loads((run / folder / "manifest.json").read_text())
    assert manifest["complete"]
    counts[folder] = len(manifest["images"])
    assert len(list((run / folder).rglob("*.png"))) == counts[folder]
  assert counts["clean"] + counts["holdout"] == 24
  assert {counts[f"protected/{row}"] for row in ROWS[1:]} == {counts["clean"]}
  manifest = json.loads((run / "protected/eudp/manifest.json").read_text())
  assert (manifest["method"], manifest["row"], manifest["radius_255"]) == ("eudp", "eudp", 16)
  assert manifest["config"]["num_rounds"] == 6
  assert 0 < manifest["worst"]["max_abs_255"] <= 16
  for row in ROWS:
    folder = run / "threats" / row / "seed0"
    model, unet, params = factory.load(folder / "model")
    assert model.shape == (16, 16, 3) and unet.sample_size == 16
    assert all(np.isfinite(leaf).all() for leaf in params["conv_in"].values())
    assert len(list((folder / "samples").glob("*.png"))) == 8
    assert json.loads((folder / "evaluation.json").read_text())["loss_clean_holdout"] > 0


def test_table_and_places_are_printed(smoke) -> None:
  table = _table(smoke.stdout)
  for label in ("Clean", "Random noise", "UDP", "EUDP"):
    assert re.search(rf"^{label} +[\d.]+ ", table, re.MULTILINE)
  assert f"report: {smoke.workdir / 'report.html'}\n" in smoke.stdout
  assert f"protected pictures: {smoke.workdir / 'protected'}\n" in smoke.stdout
  assert "the numbers mean nothing" in smoke.stdout
  assert smoke.stdout.count(AGAINST) == 1


def test_progress_names_stages_and_rates_and_nothing_else_is_said(smoke) -> None:
  said = re.split(r"[\r\n]+", smoke.stderr)
  assert any(re.search(r"protect eudp: .*min_images_per_s=.*max_images_per_s=", s) for s in said)
  assert any(re.search(r"train clean seed 0: .*images_per_s=", s) for s in said)
  known = r"|".join(
    (
      r"(protect|train|sample|features) [\w -]+:.*",
      r"16 pictures to protect, 8 held out",
      r"protect \w+: compiling for 16 pictures",
      "",
    )
  )
  assert [line for line in said if not re.fullmatch(known, line.strip())] == []


def test_rates_of_both_steps_are_recorded(smoke) -> None:
  for row in ("udp", "eudp"):
    path = smoke.workdir / "stages" / f"protect_{row}" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["position"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(records[0][name] > 0 for name in ("min_images_per_s", "max_images_per_s"))
    assert all(np.isfinite(record["train_loss"]) for record in records)


def test_victims_differ_in_their_training_set_only(smoke) -> None:
  """A model's first prediction is zero, so its first loss shows the draws alone: the same ones."""
  first, last = set(), set()
  for row in ROWS:
    path = smoke.workdir / "threats" / row / "seed0" / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    first.add(losses[0])
    last.add(losses[-1])
  assert (len(first), len(last)) == (1, len(ROWS))


def test_verify_passes_and_sees_one_level_too_many(copy: Path, entry_point) -> None:
  protected = copy / "protected" / "eudp"
  radius = json.loads((protected / "manifest.json").read_text())["radius_255"]
  words = [f"--clean={copy / 'clean'}", f"--protected={protected}", f"--radius_255={radius}"]
  done = entry_point("verify", *words)
  assert done.returncode == 0
  # What the folders are to us, and nothing else.
  assert [line.split(": ")[0] for line in done.stderr.splitlines()] == ["note", "note"]
  assert "OK: 16 files keep the budget" in done.stdout
  file = sorted(protected.rglob("*.png"))[3]
  name = file.relative_to(protected).as_posix()
  clean = np.array(Image.open(copy / "clean" / name)).astype(int)
  pixels = np.array(Image.open(file))
  y, x, c = np.argwhere(clean + radius + 1 <= 255)[0]
  pixels[y, x, c] = clean[y, x, c] + radius + 1
  Image.fromarray(pixels).save(file)
  done = entry_point("verify", *words)
  assert done.returncode == 1
  assert f"{file}: 17 levels from its clean image, budget 16" in done.stdout
  assert "FAILED: 1 files" in done.stdout


def test_second_call_makes_nothing_again(copy: Path, smoke, entry_point) -> None:
  def kept() -> dict:
    found = _files(copy)
    return {n: v for n, v in found.items() if not n.startswith(("report.", "config.json"))}

  before = kept()
  done = entry_point("eudp", "--config=demo_pixels:smoke", f"--workdir={copy}")
  assert done.returncode == 0, done.stderr
  assert kept() == before
  assert _table(done.stdout) == _table(smoke.stdout)
  assert "compiling" not in done.stderr and "it/s" not in done.stderr
  reports = [json.loads((run / "report.json").read_text()) for run in (copy, smoke.workdir)]
  for name in ("rows", "curves", "timesteps", "data", "columns"):
    assert reports[0][name] == reports[1][name]


def test_another_config_in_the_same_folder_is_refused(copy: Path, entry_point) -> None:
  before = _files(copy)
  done = entry_point(
    "eudp",
    "--config=demo_pixels:smoke",
    f"--workdir={copy}",
    "--config.threat.options.train_steps=7",
  )
  assert done.returncode == 2
  assert re.fullmatch(
    rf"error: {copy} holds a run with another config \(threat.options differ\).*\n", done.stderr
  )
  assert _files(copy) == before


def test_rows_may_be_added_later(copy: Path, smoke, entry_point) -> None:
  before = _files(copy / "protected")
  done = entry_point(
    "eudp",
    "--config=demo_pixels:smoke",
    f"--workdir={copy}",
    "--config.rows=('clean','eudp','eudp_shuffled')",
    "--noprogress",
  )
  assert done.returncode == 0, done.stderr
  assert "%" not in done.stderr
  after = _files(copy / "protected")
  assert {name: after[name] for name in before} == before
  table = _table(done.stdout).splitlines()
  new = {re.split(" {2,}", line)[0]: re.split(" {2,}", line)[1:] for line in table[-3:]}
  assert list(new) == ["Clean", "EUDP", "EUDP, shuffled"]
  old = [re.split(" {2,}", line) for line in _table(smoke.stdout).splitlines()]
  assert new["EUDP"] == next(cells[1:] for cells in old if cells[0] == "EUDP")
  report = json.loads((copy / "report.json").read_text())
  controls = {row["name"]: row["control"] for row in report["rows"]}
  assert controls == {"clean": True, "eudp": False, "eudp_shuffled": True}


@pytest.mark.parametrize(
  "rows",
  [
    ("random_noise",),  # Attacks no network: nothing is compiled.
    pytest.param(("random_noise", "udp"), marks=pytest.mark.slow),
  ],
)
def test_noevaluate_stops_after_protecting(
  rows: tuple[str, ...], tmp_path: Path, smoke, entry_point
) -> None:
  """And `experiments.udp` has the same words and the same numbers, without EUDP."""
  done = entry_point(
    "udp",
    "--config=demo_pixels:smoke",
    f"--workdir={tmp_path / 'run'}",
    "--noevaluate",
    # The rows of `experiments.udp` by itself.
    *([] if "udp" in rows else [f"--config.rows={rows}"]),
  )
  assert done.returncode == 0, done.stderr
  *against, folder = done.stdout.splitlines()
  assert [line[: len(AGAINST)] for line in against] == [AGAINST] * ("udp" in rows)
  assert folder == f"protected pictures, a folder a row: {tmp_path / 'run' / 'protected'}"
  names = sorted(path.name for path in (tmp_path / "run").glob("[!.]*"))
  assert names == ["clean", "config.json", "holdout", "protected", "stages"]
  assert sorted(p.name for p in (tmp_path / "run/protected").iterdir()) == sorted(rows)
  for file in (tmp_path / "run/protected").rglob("*.png"):
    same = smoke.workdir / "protected" / file.relative_to(tmp_path / "run/protected")
    assert file.read_bytes() == same.read_bytes()
