"""`experiments.protect` on pictures as they are: killed runs, masks, captions, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data.images import read_image
from udp_jax.data.verify import verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Four pictures of 1x1 to 90x75, one of them with a caption."""
  folder = tmp_path_factory.mktemp("pictures")
  for i, (height, width) in enumerate(((1, 1), (75, 90), (16, 16), (33, 20))):
    y, x, c = np.mgrid[:height, :width, :3]
    pixels = np.clip(128 + 90 * np.sin(0.3 * x + 0.2 * y + i + c), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
  (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "the sea at night"}\n')
  return folder


def _words(folder: Path, output: Path, *words: str) -> list[str]:
  rounds = ["--config.protections.advdm.num_rounds=12", "--config.checkpoint.every_rounds=2"]
  start = [
    "--config=demo_pixels:smoke",
    f"--input={folder}",
    f"--output={output}",
    "--method=advdm",
  ]
  return [*start, *rounds, *words]


def _files(output: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in output.glob("*.png")}


@pytest.mark.long
def test_killed_run_of_a_latent_model_goes_on_to_the_same_files(
  folder: Path,
  tiny_pipeline_folder: Path,
  tmp_path: Path,
  entry_point,
  process_environment: dict[str, str],
) -> None:
  options = [f"--model={tiny_pipeline_folder}", "--files_at_a_time=2", "--prompt=a cat"]
  done = entry_point("protect", *_words(folder, tmp_path / "whole", *options))
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f"4 pictures protected in {tmp_path / 'whole'} (at most ")
  report = verify(folder, tmp_path / "whole", 16)
  assert report.ok and report.checked == 4
  assert report.worst is not None and report.worst.max_abs_255 is not None
  assert report.worst.max_abs_255 > 8
  made = json.loads((tmp_path / "whole" / "manifest.json").read_text())
  assert made["tiling"]["tile_size"] == 16 and made["tiling"]["overlap"] == 2

  words = _words(folder, tmp_path / "killed", *options)
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.protect", *words],
    cwd=ROOT,
    env=process_environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    process_group=0,
  )
  stages = tmp_path / "killed.work" / "stages" / "protect_advdm"
  deadline = time.monotonic() + 300
  while not (stages / "group_00002" / "metrics.jsonl").exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait(60) == -signal.SIGKILL
  assert len(_files(tmp_path / "killed")) == 2
  assert not (tmp_path / "killed" / "manifest.json").exists()
  done = entry_point("protect", *words)
  assert done.returncode == 0, done.stderr
  assert "2 of 4 pictures are finished" in done.stderr and "advdm 1/2" not in done.stderr
  assert _files(tmp_path / "killed") == _files(tmp_path / "whole")

  # Another folder of pictures is another run.
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  (other / "metadata.jsonl").unlink()
  words = _words(other, tmp_path / "third", *options, f"--workdir={tmp_path / 'killed.work'}")
  done = entry_point("protect", *words)
  assert done.returncode == 2 and "another config (data.source" in done.stderr


def test_mask_on_the_command_line(folder: Path, tmp_path: Path, entry_point) -> None:
  (tmp_path / "masks").mkdir()
  for path in folder.glob("*.png"):
    before = read_image(path).pixels
    mask = np.zeros(before.shape[:2], np.uint8)
    mask[:, before.shape[1] // 2 :] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / path.name)
  output = tmp_path / "out"
  words = [*_words(folder, output), "--method=random_noise", "--tile_size=24", "--overlap=5"]
  done = entry_point("protect", *words, f"--mask={tmp_path / 'masks'}")
  assert done.returncode == 0, done.stderr
  for path in folder.glob("*.png"):
    before, after = read_image(path).pixels, read_image(output / path.name).pixels
    half = before.shape[1] // 2
    np.testing.assert_array_equal(before[:, :half], after[:, :half])
    assert (before[:, half:] != after[:, half:]).mean() > 0.8
  made = json.loads((output / "manifest.json").read_text())
  assert made["tiling"] == {
    "tile_size": 24,
    "overlap": 5,
    "files_at_a_time": 8,
    "masked": True,
  }


def test_what_is_refused_leaves_nothing_behind(folder: Path, tmp_path: Path, entry_point) -> None:
  mask = tmp_path / "mask.png"
  Image.fromarray(np.zeros((5, 5), np.uint8)).save(mask)
  noise = "--method=random_noise"
  for words, code, message in (
    ([f"--mask={mask}"], 3, "the mask is 5x5, 0.png is 1x1"),
    (["--prompt=a cat"], 2, "a prompt is for models with a text encoder; this one has none"),
    (["--resize", "--mask=/nope"], 2, "--mask is for pictures at full resolution"),
  ):
    done = entry_point("protect", *_words(folder, tmp_path / "out"), noise, *words)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [mask]
