"""`udp-jax models`: what is listed, and what of it cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_everything_here_is_listed(tmp_path: Path, process_environment) -> None:
  other = tmp_path / "hub" / "models--someone--flux" / "snapshots" / "fedcba9876543210"
  other.mkdir(parents=True)
  (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
  done = subprocess.run(
    [sys.executable, "-m", "udp_jax.commands.main", "models"],
    cwd=ROOT,
    env=process_environment | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout
  assert said.startswith("tiny_ldm: a latent diffusion model (StableDiffusionPipeline)\n")
  assert "protects against: tiny_ldm, the small latent diffusion model of this package" in said
  assert "\nsomeone/flux at fedcba9\n  not supported: " in said and "Flux" in said
  assert f"looked for in {tmp_path / 'hub'}.\n" in said and "hf download OWNER/NAME" in said
  for way in ("FOLDER  ", "FILE.safetensors  ", "OWNER/NAME[@REVISION]  ", "pixel  "):
    assert f"\n  {way}" in said


def test_a_folder_says_what_it_is(tiny_pipeline_folder: Path, run_module) -> None:
  done = run_module("udp_jax.commands.main", "models", str(tiny_pipeline_folder))
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(f"  --model={tiny_pipeline_folder}\n")
