"""`python -m experiments.verify` as its users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
  """Two images; the protected ones are exactly eight levels away everywhere."""
  for name, level in (("clean", 100), ("protected", 108)):
    (tmp_path / name).mkdir()
    for file in ("a.png", "b.png"):
      Image.new("RGB", (4, 4), (level, level, level)).save(tmp_path / name / file)
  return tmp_path / "clean", tmp_path / "protected"


def _flags(folders: tuple[Path, Path]) -> list[str]:
  return [f"--clean={folders[0]}", f"--protected={folders[1]}", "--radius_255=8"]


def test_budget_kept_exits_0(folders: tuple[Path, Path], entry_point) -> None:
  done = entry_point("verify", *_flags(folders))
  assert done.returncode == 0, done.stderr
  assert "OK: 2 files keep the budget (budget 8 levels, worst 8)" in done.stdout


def test_one_level_past_the_budget_exits_1_and_names_the_file(
  folders: tuple[Path, Path], tmp_path: Path, entry_point
) -> None:
  pixels = np.array(Image.open(folders[1] / "b.png"))
  pixels[3, 3, 2] += 1
  Image.fromarray(pixels).save(folders[1] / "b.png")
  done = entry_point("verify", *_flags(folders), f"--json={tmp_path}/report.json")
  assert done.returncode == 1
  assert f"{folders[1]}/b.png: 9 levels from its clean image, budget 8" in done.stdout
  assert "FAILED: 1 files" in done.stdout
  report = json.loads((tmp_path / "report.json").read_text())
  assert not report["ok"]
  assert [failure["name"] for failure in report["failures"]] == ["b"]
  printed = entry_point("verify", *_flags(folders), "--json=-")
  assert json.loads(printed.stdout) == report


@pytest.mark.parametrize("program", ["verify", "evaluate"])
@pytest.mark.parametrize("budget", ["nan", "inf", "-1", "256"])
def test_what_is_no_budget_is_refused(
  folders: tuple[Path, Path], budget: str, program: str, entry_point
) -> None:
  done = entry_point(program, *_flags(folders)[:2], f"--radius_255={budget}")
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.strip().splitlines()) == 1 and "to 255, in levels" in done.stderr


def test_nothing_is_divided_by_a_budget_of_0(folders: tuple[Path, Path], entry_point) -> None:
  done = entry_point("evaluate", *_flags(folders)[:2], "--radius_255=0")
  assert done.returncode == 2 and "--radius_255 is 0.0: it must be from 1" in done.stderr
  assert entry_point("verify", *_flags(folders)[:2], "--radius_255=0").returncode == 1


def test_user_errors_are_one_line(folders: tuple[Path, Path], entry_point) -> None:
  for arguments in (
    [f"--clean={folders[0]}/nothing", f"--protected={folders[1]}", "--radius_255=8"],
    [f"--clean={folders[0]}"],
  ):
    done = entry_point("verify", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_shows_the_command(entry_point) -> None:
  done = entry_point("verify", "--help")
  assert "python -m experiments.verify --clean=DIR --protected=DIR --radius_255=8" in done.stdout
  for flag in ("--clean", "--protected", "--radius_255", "--json"):
    assert flag in done.stdout
