"""`experiments.evaluate` on folders whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
  """Two pictures of noise, and the same ones six levels away, up and down."""
  generator = np.random.default_rng(0)
  for name in "ab":
    clean = generator.integers(10, 240, (16, 16, 3), np.uint8)
    signs = generator.choice([-6, 6], clean.shape)
    for folder, pixels in (("clean", clean), ("protected", clean + signs)):
      (tmp_path / folder).mkdir(exist_ok=True)
      Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
  return tmp_path / "clean", tmp_path / "protected"


def test_numbers_are_printed_and_written(folders, tmp_path: Path, entry_point) -> None:
  clean, protected = folders
  pair = [f"--clean={clean}", f"--protected={protected}"]
  done = entry_point("evaluate", *pair, "--radius_255=8", f"--json={tmp_path / 'out.json'}")
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out.json").read_text())["pictures"]
  assert found["max_abs_255"] == 6 and found["rms_ratio"] == pytest.approx(6 / 8)
  assert found["psnr"] == pytest.approx(20 * np.log10(255 / 6), abs=1e-3)
  lines = dict(line.split() for line in done.stdout.splitlines()[1:])
  assert done.stdout.startswith("pictures\n")
  assert {name: float(value) for name, value in lines.items()} == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "give --real and --samples, or --clean and --protected, or all"),
    (["--clean=c"], "give --real and --samples, or"),
    (["--clean=c", "--protected=p"], "--radius_255 is needed with --clean and --protected"),
  ],
)
def test_half_a_request_is_none(words: list[str], message: str, entry_point) -> None:
  done = entry_point("evaluate", *words)
  assert done.returncode == 2 and message in done.stderr
  assert done.stderr.count("\n") == 1


def test_folders_that_are_no_pairs(folders, entry_point) -> None:
  clean, protected = folders
  (protected / "b.png").rename(protected / "c.png")
  done = entry_point("evaluate", f"--clean={clean}", f"--protected={protected}", "--radius_255=8")
  assert done.returncode == 3 and "differ in names or sizes" in done.stderr
