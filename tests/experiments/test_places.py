"""Folders of an artist, as commands meet them: nothing is lost, nothing is protected twice.

tests/data/test_places.py has the rules; here whole runs keep them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOISE = ("--config=demo_pixels:smoke", "--method=random_noise", "--noprogress")


def _pictures(folder: Path, *numbers: int) -> Path:
  folder.mkdir(exist_ok=True)
  for number in numbers:
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"p{number}.png")
  return folder


def _bytes(folder: Path) -> dict[str, bytes]:
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
  assert done.returncode == 4, done.stderr
  assert "Traceback" not in done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert all(word in line for word in words), line


@pytest.mark.slow
def test_folders_of_one_artist(tmp_path: Path, process_environment, entry_point) -> None:
  source = _pictures(tmp_path / "in", 0, 1)
  output = tmp_path / "out"
  output.mkdir()

  # Started in the output folder, which it is told of as ".".
  command = [sys.executable, "-m", "experiments.protect", *NOISE, "--input=../in", "--output=."]
  environment = process_environment | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    command, cwd=output, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.work"]
  first, clean = _bytes(output), _bytes(tmp_path / "out.work" / "clean")
  assert set(first) == set(clean) == {"p0.png", "p1.png"}

  # The clean reference, or what holds it, is no input of the run that would replace it.
  words = [*NOISE, f"--output={output}", "--overwrite"]
  for place in ("out.work/clean", "out.work", "out", "."):
    _refused(
      entry_point("protect", *words, f"--input={tmp_path / place}"), "--input", "choose another"
    )
  assert _bytes(output) == first and _bytes(tmp_path / "out.work" / "clean") == clean
  # Nor is a folder in which the output would be.
  inside = [*NOISE, f"--input={source}", f"--output={source / 'out'}"]
  _refused(entry_point("protect", *inside), "lies in --input")
  assert set(_bytes(source)) == {"p0.png", "p1.png"}

  # One picture more, one file less.
  _pictures(source, 2)
  (output / "p1.png").unlink()
  kept = (output / "p0.png").stat().st_mtime_ns
  again = ["--config=demo_pixels:smoke", "--method=random_noise", "--input=../in", "--output=."]
  done = subprocess.run(
    [*command[:3], *again], cwd=output, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "1 of 3 pictures are finished" in done.stderr
  assert {name: _bytes(output)[name] for name in first} == first
  assert set(_bytes(output)) == {"p0.png", "p1.png", "p2.png"}
  assert (output / "p0.png").stat().st_mtime_ns == kept
  verified = entry_point("verify", f"--clean={source}", f"--protected={output}", "--radius_255=16")
  assert verified.returncode == 0, verified.stdout

  # A folder of ours is named where it is an input.
  done = entry_point("purify", f"--input={output}", f"--output={tmp_path / 'p'}", "--method=jpeg")
  assert done.returncode == 0, done.stderr
  assert "note: input is a folder that udp_jax protected by random_noise, radius 16" in done.stderr
  made = json.loads((tmp_path / "p" / "manifest.json").read_text())
  assert "protected by random_noise, radius 16" in made["origin"]["input_is"]
  # With its sources gone, what is left of them stays.
  for path in source.iterdir():
    path.rename(path.with_name(f"renamed_{path.name}"))
  words = [f"--input={source}", f"--output={output}", "--overwrite", "--config.radius_255=4"]
  _refused(entry_point("protect", *NOISE, *words), "last copy of a picture", "p0.png is gone")


def _published(folder: Path, *words: str) -> None:
  """No file of a folder holds one of the words."""
  for path in folder.rglob("*"):
    if path.is_file():
      found = [word for word in words if word.encode() in path.read_bytes()]
      assert not found, f"{path.name} names {found[0]}"


@pytest.mark.slow
def test_spellings_sums_and_names(tmp_path: Path, entry_point) -> None:
  source, output = _pictures(tmp_path / "in", 0, 1), tmp_path / "out"
  (source / "bad.heic").touch()
  home = str(Path.home())
  for number, text in enumerate((f"{source}", f"{source}/", f"folder:{source}"), 2):
    done = entry_point("protect", *NOISE, f"--input={text}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert f"{number} pictures protected in {output} (at most" in done.stdout
    _published(output, str(tmp_path), home)
    _pictures(source, number)
  (source / "p0.png").unlink()
  done = entry_point("protect", *NOISE, f"--input={source}", f"--output={output}")
  assert f"4 pictures protected in {output}, 1 more stay there whose pictures" in done.stdout
  (tmp_path / "l").symlink_to("out")
  words = [f"--output={tmp_path / 'pure'}", "--method=jpeg", "--noprogress"]
  for place in ("out/", "l"):
    done = entry_point("purify", f"--input={tmp_path}/{place}", *words)
    assert done.returncode == 0 and "5 pictures purified by jpeg" in done.stdout, done.stderr
    _published(tmp_path / "pure", str(tmp_path), home)

  # Nothing goes into what a run keeps.
  kept = _bytes(tmp_path / "out.work")
  for place in ("out.work/clean", "out.work/clean/new", "out.work/new"):
    there = [f"--output={tmp_path / place}", "--overwrite"]
    for name, more in (("purify", ["--method=jpeg"]), ("protect", NOISE)):
      _refused(entry_point(name, *more, f"--input={source}", *there), "--output", "choose another")
  assert _bytes(tmp_path / "out.work") == kept


@pytest.mark.slow
def test_resized_pictures_are_replaced_while_there_are_copies(tmp_path: Path, entry_point) -> None:
  source, output = _pictures(tmp_path / "in", 0, 1), tmp_path / "out"
  words = [*NOISE, "--resize", f"--output={output}"]
  assert entry_point("protect", *words, f"--input={source}").returncode == 0
  _published(output, str(tmp_path), str(Path.home()))
  fewer = _pictures(tmp_path / "fewer", 1)
  kept = _bytes(tmp_path / "out.work"), _bytes(output)
  (source / "p0.png").rename(tmp_path / "p0.png")
  words += [f"--input={fewer}", "--overwrite"]
  _refused(entry_point("protect", *words), "p0.png may be the last copy of a picture")
  assert (_bytes(tmp_path / "out.work"), _bytes(output)) == kept
  (tmp_path / "p0.png").rename(source / "p0.png")
  done = entry_point("protect", *words)
  assert done.returncode == 0, done.stderr
  assert set(_bytes(output)) == {"p1.png"}


@pytest.mark.slow
def test_of_two_runs_on_one_output_one_runs(tmp_path: Path, process_environment) -> None:
  source = _pictures(tmp_path / "in", 0, 1)
  words = [*NOISE, f"--input={source}", f"--output={tmp_path / 'out'}"]

  def start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.protect", *words]
    environment = process_environment | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

  first = start()
  try:
    assert "2 pictures" in first.stderr.readline()
    first.send_signal(signal.SIGSTOP)  # With its lock, for as long as the second takes.
    second = start()
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 4, said
    assert "Traceback" not in said
    assert f"in use by process {first.pid}" in said
  finally:
    first.send_signal(signal.SIGCONT)
    said = first.communicate(timeout=300)[1]
  assert first.returncode == 0, said
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
    "manifest.json", "p0.png", "p1.png"
  ]  # fmt: skip
