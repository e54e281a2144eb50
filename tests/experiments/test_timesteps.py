"""`experiments.timesteps`: from a model and pictures to the file."""

from __future__ import annotations

import json

from udp_jax.models import factory
from udp_jax.studies import usefulness


def test_the_command(tmp_path, entry_point, tiny_model):
  folder, output = tmp_path / "ddpm", tmp_path / "measured"
  factory.save(folder, tiny_model.model, tiny_model.config, tiny_model.params)
  words = [f"--model={folder}", f"--output={output}", "--num_pictures=3", "--strata=4"]
  done = entry_point("timesteps", *words)
  assert done.returncode == 0, done.stderr
  assert f"3 pictures: {output / 'timesteps.json'}" in done.stdout
  assert "p(t) ~ abar^0.5 (1 - abar)^0.5" in done.stdout
  record = json.loads((output / "timesteps.json").read_text())
  assert record["model"] == "ddpm" and len(record["usefulness"]) == 4
  assert record["settings"]["seed"] == 0 and "experiments.timesteps" in record["command"]
  assert usefulness.read(str(output), str(folder)).shape == (50,)
  # The same bytes again, and no output without a model.
  before = (output / "timesteps.json").read_bytes()
  assert entry_point("timesteps", *words).returncode == 0
  assert (output / "timesteps.json").read_bytes() == before
  done = entry_point("timesteps", f"--output={output}")
  assert done.returncode == 2 and "--model and --output are needed" in done.stderr
