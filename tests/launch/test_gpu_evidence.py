"""`launch/gpu_evidence.sh`: its words and errors, and on a CPU all pieces of a small study."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, StandIn

SCRIPT = ROOT / "launch" / "gpu_evidence.sh"


def _said(stand_in: StandIn, *words: str) -> list[str]:
  done = stand_in.launch("gpu_evidence.sh", "--dry_run", *words)
  assert done.returncode == 0, done.stderr
  return shlex.split(done.stdout)


def test_a_piece_knows_its_time(stand_in: StandIn) -> None:
  words = ("--row=udp", "--seed=1", "--pictures=p.zip", "--out=o", "--minutes=9")
  said = _said(stand_in, "victim", *words, "--", "--config.threat.options.train_steps=5")
  assert said[:3] == ["timeout", "--kill-after=2", "535"] and "--seconds=520" in said
  assert said[-1] == "--config.threat.options.train_steps=5"
  here = stand_in.folder
  assert {f"--pictures={here}/p.zip", f"--out={here}/o", f"--workdir={here}/o.work"} <= {*said}
  assert {"--row=udp", "--seed=1", "--config=cifar10_evidence"} <= {*said}


def test_what_may_be_given_twice(stand_in: StandIn) -> None:
  said = _said(
    stand_in, "collect", "--pictures=p.zip", "--work=w", "--pieces=a b", "--pieces=/abs/c"
  )
  assert [word for word in said if word.startswith("--pieces")] == [
    f"--pieces={stand_in.folder}/a b",
    "--pieces=/abs/c",
  ]
  assert "timeout" not in said


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "one of pack, protect, victim, collect, judge"),
    (("train", "--pictures=x"), "train: known are pack"),
    (("pack",), "--pictures is missing"),
    (("protect", "--pictures=x"), "--row is missing"),
    (("victim", "--pictures=x", "--row=udp"), "--out is missing"),
    (("victim", "--pictures=x", "--row=udp", "--out=o"), "--seed is missing"),
    (("collect", "--pictures=x", "--work=w"), "--pieces is missing"),
    (("judge", "--pictures=x"), "--work is missing"),
  ],
)
def test_wrong_arguments(words: tuple[str, ...], message: str, stand_in: StandIn) -> None:
  done = stand_in.launch("gpu_evidence.sh", *words)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line


def test_without_a_gpu_a_piece_does_not_start(stand_in: StandIn) -> None:
  stand_in.add("nvidia-smi", "print('No devices were found'); sys.exit(6)")
  python = stand_in.add("python3", "")
  words = ("protect", "--row=udp", "--pictures=p.zip", "--out=o", f"--python={python}")
  done = stand_in.launch("gpu_evidence.sh", *words)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "finds no GPU" in line and [call[0] for call in stand_in.calls()] == ["nvidia-smi"]
  done = stand_in.launch("gpu_evidence.sh", *words, "--any_device")
  assert done.returncode == 0 and stand_in.calls()[-1][:3] == ["python3", "-m", "launch.pieces"]


@pytest.mark.long
def test_pieces_of_several_machines_are_one_study(
  tmp_path: Path, process_environment: dict[str, str], entry_point
) -> None:
  """A machine is a folder here: nothing but the files named passes from one to another."""
  pictures = tmp_path / "pictures.zip"

  def piece(action: str, *words: str) -> str:
    done = subprocess.run(
      [
        *("bash", str(SCRIPT), action, "--smoke", f"--pictures={pictures}"),
        *(f"--python={sys.executable}", *words),
      ],
      env=process_environment,
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=570,
      check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  assert json.loads(piece("pack"))["pictures"] == 24
  piece("protect", "--row=udp", "--out=one")
  udp = "--protected=one/protect-udp.zip"
  piece("protect", "--row=udp_matched_noise", udp, "--out=two")
  piece("victim", "--row=clean", "--seed=0", "--out=three")
  piece("victim", "--row=udp", "--seed=0", udp, "--out=four")
  for folder in ("one", "two", "three", "four"):
    assert len(list((tmp_path / folder).iterdir())) == 2
  folders = [f"--pieces={folder}" for folder in ("one", "two", "three", "four")]
  found = json.loads(piece("collect", *folders, "--work=study"))
  assert found["pieces"] == 4 and len(found["commits"]) == 1
  assert "eudp 0" in found["missing"] and "udp 0" not in found["missing"]
  table = piece("judge", "--work=study")
  assert "Clean" in table and "UDP" in table and "EUDP" not in table
  study = tmp_path / "study" / "study"
  assert json.loads((study / "report.json").read_text()) and (study / "report.html").exists()

  # One run of the same study on one machine measures the very same.
  whole = tmp_path / "whole"
  done = entry_point(
    "eudp",
    "--config=cifar10_evidence:smoke",
    "--config.rows=('clean', 'udp')",
    f"--config.data.source=npz:{tmp_path / 'study' / 'pictures.npz'}",
    f"--workdir={whole}",
  )
  assert done.returncode == 0, done.stderr
  for row in ("clean", "udp"):
    one, other = (place / "threats" / row / "seed0" / "evaluation.json" for place in (study, whole))
    assert json.loads(one.read_text()) == json.loads(other.read_text())
