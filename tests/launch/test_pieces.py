"""Pieces of a study: what they keep, what they refuse, and when they give up."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import _cli
from tests.launch.conftest import ROOT, without_flags
from udp_jax.data import image_set
from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.runtime import provenance
from udp_jax.studies import settings

with without_flags():
  from launch import pieces as lib


@pytest.fixture(scope="module")
def config() -> Any:
  return settings.frozen(_cli.get_config("eudp", "cifar10_evidence:smoke"))


@pytest.fixture(scope="module")
def packed(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
  path = tmp_path_factory.mktemp("pack") / "pictures.zip"
  assert lib.pack(config, path)["pictures"] == 24
  return path


@pytest.fixture
def opened(config: Any, packed: Path, tmp_path: Path) -> lib.Opened:
  return lib.opened(config, packed, tmp_path / "work")


def _noise(opened: lib.Opened, out: Path) -> Path:
  lib.protect(opened, "random_noise", lib.Target(out, math.inf), {})
  return out / "protect-random_noise.zip"


@pytest.mark.parametrize("count", [1, 99, 100, 101])
def test_pictures_come_back_byte_for_byte(count: int, tmp_path: Path) -> None:
  images = np.random.default_rng(count).integers(0, 256, (count, 8, 6, 3), np.uint8)
  images[0] = 0
  path = tmp_path / "a.zip"
  lib.write_pictures(path, images, {"row": "udp"})
  found, record = lib.read_pictures(path)
  assert np.array_equal(found, images) and record == {"row": "udp"}
  with zipfile.ZipFile(path) as archive:
    assert len(archive.namelist()) == -(-count // 100) + 1
  before = path.read_bytes()
  lib.write_pictures(path, images, {"row": "udp"})
  assert path.read_bytes() == before


def test_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
  path = tmp_path / "a.zip"
  with pytest.raises(MissingDataError, match="no such file"):
    lib.read_pictures(path)
  lib.write_pictures(path, np.zeros((3, 8, 8, 3), np.uint8), {})
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(BadDataError, match="not a whole zip"):
    lib.read_pictures(path)


def test_too_many_pictures_for_a_machine(
  config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(lib, "MOST_BYTES", 2000)
  with pytest.raises(BadDataError, match="at most 25"):
    lib.pack(config, tmp_path / "pictures.zip")


def test_every_machine_divides_the_pictures_alike(
  config: Any, packed: Path, tmp_path: Path
) -> None:
  one, other = (lib.opened(config, packed, tmp_path / name) for name in ("one", "other"))
  assert one.identity == other.identity
  assert one.clean.names == other.clean.names and len(one.clean.names) == 16
  assert not {*one.clean.names} & {*one.holdout.names}
  whole = {*lib.read_pictures(packed)[1]["names"]}
  assert {*one.clean.names} | {*one.holdout.names} == whole


@pytest.mark.parametrize(
  ("change", "same"),
  [
    ({"rows": ("clean",)}, True),
    ({"threat.seeds": (0, 1)}, True),
    ({"checkpoint.every_steps": 7}, True),
    ({"threat.options.train_steps": 7}, False),
    ({"radius_255": 8.0}, False),
    ({"performance.dtype": "float32"}, False),
  ],
)
def test_what_pieces_have_in_common(
  change: dict, same: bool, config: Any, packed: Path, opened: lib.Opened, tmp_path: Path
) -> None:
  other = lib.opened(settings.frozen(config, change), packed, tmp_path / "other")
  assert (other.identity == opened.identity) == same


def test_a_perturbation_travels(opened: lib.Opened, config: Any, packed: Path, tmp_path: Path):
  path = _noise(opened, tmp_path / "out")
  elsewhere = lib.opened(config, packed, tmp_path / "elsewhere")
  found = lib.read_protected(elsewhere, path)
  change = found.images.astype(int) - elsewhere.clean.images
  assert found.row == "random_noise" and 8 < np.abs(change).max() <= 16
  record = json.loads(path.with_suffix(".json").read_text())
  assert record["zip"] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert record["protected"] == image_set.pixels_sha256(found.images)
  assert record["hardware"]["backend"] == "cpu" and record["seconds"] > 0
  assert {file.name for file in path.parent.iterdir()} == {
    *("protect-random_noise.zip", "protect-random_noise.json"),
  }


def test_pieces_that_do_not_belong_together(
  opened: lib.Opened, config: Any, packed: Path, tmp_path: Path
) -> None:
  path = _noise(opened, tmp_path / "out")
  other = lib.opened(settings.frozen(config, {"seed": 5}), packed, tmp_path / "other")
  with pytest.raises(BadDataError, match="a piece with other settings"):
    lib.read_protected(other, path)
  levels, record = lib.read_pictures(path)
  lib.write_pictures(path, np.full_like(levels, 128 + 17), record)
  with pytest.raises(BadDataError, match="17 levels, more than the budget of random_noise"):
    lib.read_protected(opened, path)
  lib.write_pictures(path, np.full_like(levels, 128), record)
  with pytest.raises(BadDataError, match="not those that the piece made"):
    lib.read_protected(opened, path)
  with pytest.raises(BadDataError, match="not the file of protect-random_noise.json"):
    lib.collect(opened, [str(path.parent)])
  path.unlink()
  with pytest.raises(BadDataError, match="missing, or not the file"):
    lib.collect(opened, [str(path.parent)])


@pytest.mark.parametrize(("commit", "found"), [("", "unknown"), ("abc", "abc")])
def test_pieces_of_an_unknown_commit_are_said_to_be(
  commit: str, found: str, opened: lib.Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(provenance, "commit", lambda: commit)
  path = _noise(opened, tmp_path / "out")
  assert lib.collect(opened, [str(path.parent)])["commits"] == [found]


def test_what_has_to_be_given(opened: lib.Opened, tmp_path: Path) -> None:
  with pytest.raises(MissingDataError, match="udp_matched_noise imitates udp: give its piece"):
    lib.protect(opened, "udp_matched_noise", lib.Target(tmp_path, math.inf), {})
  with pytest.raises(MissingDataError, match="no pictures of udp"):
    lib.victim(opened, "udp", 0, lib.Target(tmp_path, math.inf), {})
  with pytest.raises(MissingDataError, match="no pieces in"):
    lib.collect(opened, [str(tmp_path)])
  with pytest.raises(MissingDataError, match="no seed has a victim of every row"):
    lib.judge(opened)


def test_a_victim_of_other_pictures_is_refused(opened: lib.Opened, tmp_path: Path) -> None:
  path = _noise(opened, tmp_path)
  record = {"piece": "victim", "row": "random_noise", "seed": 0, **opened.identity, "curve": []}
  record |= {"training_set": "0", "zip": hashlib.sha256(path.read_bytes()).hexdigest()}
  path.with_name("victim-random_noise-0.zip").write_bytes(path.read_bytes())
  path.with_name("victim-random_noise-0.json").write_text(json.dumps(record))
  with pytest.raises(
    BadDataError, match="trained on other pictures than the piece of random_noise"
  ):
    lib.collect(opened, [str(tmp_path)])


@pytest.mark.parametrize(
  ("calls", "left", "found"),
  [
    ([], 100.0, ""),
    ([], 0.0, "the time is over, at 0 of 100"),
    # The first call also compiles; the second alone may be an accident.
    ([(10, 60.0), (20, 9.0)], 10.0, ""),
    ([(10, 60.0), (20, 1.0), (30, 1.0)], 7.1, ""),
    ([(10, 60.0), (20, 1.0), (30, 1.0)], 6.05, "0.1 s each: 90 of 100 would fit"),
    ([(10, 60.0), (20, 1.0), (30, 1.0)], 0.05, "0.1 s each: 30 of 100 would fit"),
    ([(10, 60.0), (20, 1.0), (30, 1.0)], -1.0, "the time is over, at 30 of 100"),
    # What comes after the loop has its own time.
    ([(10, 60.0), (20, 1.0), (100, 8.0)], -1.0, ""),
  ],
)
def test_when_the_time_will_not_do(calls: list, left: float, found: str) -> None:
  said = lib.too_long(calls, 100, left)
  assert said == found


def test_a_piece_without_time_leaves_nothing(packed: Path, tmp_path: Path) -> None:
  done = subprocess.run(
    [
      *(sys.executable, "-m", "launch.pieces", "--do=victim", "--config=cifar10_evidence:smoke"),
      *(f"--pictures={packed}", "--row=clean", "--seconds=0.1"),
      *(f"--out={tmp_path / 'out'}", f"--workdir={tmp_path / 'work'}"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == lib.UNFINISHED, done.stderr
  assert done.stdout.strip() == "unfinished: the time is over, at 0 of 6"
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "--do is needed"),
    (["--do=pack"], "--config is needed"),
    (["--do=pack", "--config=demo_pixels:smoke"], "--pictures is needed"),
    (["--do=judge", "--config=demo_pixels:smoke", "--pictures=x"], "--workdir is needed"),
  ],
)
def test_wrong_arguments(words: list[str], message: str, run_module) -> None:
  done = run_module("launch.pieces", *words)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line
