"""`experiments.train_ldm` as a user runs it: from photographs in packages to a model that loads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.models.pipeline import load_pipeline
from udp_jax.runtime.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SMOKE = "--config=tiny_ldm:smoke"


def test_without_workdir(entry_point) -> None:
  done = entry_point("train_ldm", SMOKE)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --config and --workdir are needed")


@pytest.mark.long
def test_whole_run_and_one_that_was_stopped(entry_point, process_environment, tmp_path) -> None:
  whole = tmp_path / "whole"
  done = entry_point("train_ldm", SMOKE, f"--workdir={whole}")
  assert done.returncode == 0, done.stderr
  assert f"model: {whole / 'model'}" in done.stdout
  results = json.loads((whole / "results.json").read_text())
  assert set(results["denoising"]) == {"held_out", "learned"}
  assert all(found["psnr"] > 0 for found in results["reconstruction"].values())
  for name in ("samples", "reconstructions", "losses"):
    with Image.open(whole / f"{name}.png") as picture:
      assert np.asarray(picture).std() > 0
  pipeline = load_pipeline(whole / "model")
  assert pipeline.tokenizer is not None and pipeline.model.image_shape == (32, 32, 3)
  assert pipeline.configs["vae"].scaling_factor == results["scaling_factor"] != 0.18215

  # Another config is refused before anything is read.
  done = entry_point("train_ldm", SMOKE, f"--workdir={whole}", "--config.seed=1")
  assert done.returncode == 2 and "(seed differ)" in done.stderr

  stopped = tmp_path / "stopped"
  metrics = stopped / "autoencoder" / "metrics.jsonl"
  command = [sys.executable, "-m", "experiments.train_ldm", SMOKE, f"--workdir={stopped}"]
  process = subprocess.Popen(
    command, cwd=ROOT, env=process_environment, stderr=subprocess.PIPE, text=True
  )
  while not read_metrics(metrics) and process.poll() is None:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  assert not (stopped / "model").exists()
  done = entry_point("train_ldm", SMOKE, f"--workdir={stopped}")
  assert done.returncode == 0, done.stderr
  assert json.loads((stopped / "results.json").read_text()) == results
  for part in ("vae", "unet", "text_encoder"):
    (path,) = (whole / "model" / part).glob("*.safetensors")
    assert path.read_bytes() == (stopped / "model" / part / path.name).read_bytes()
