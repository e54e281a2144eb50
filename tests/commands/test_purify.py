"""`experiments.purify` and its configs; tests/stages/test_purify.py has the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from experiments import _cli
from udp_jax import purifiers, registry

CONFIGS = _cli.config_names("purify")


@pytest.mark.parametrize("variant", ["", *_cli.VARIANTS])
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_fit_their_methods(name, variant):
  config = _cli.get_config("purify", f"{name}:{variant}")
  function = registry.constructor("udp_jax.purifiers", config.method)
  registry.check_options(function, name, config.options.to_dict())
  assert config.method in purifiers.available()
  assert config.per_device_batch_size >= 1 and config.steps_per_call >= 1


def test_a_folder_goes_through(tmp_path, entry_point):
  source, output = tmp_path / "source", tmp_path / "purified"
  source.mkdir()
  generator = np.random.default_rng(0)
  for name, size in {"a.png": (33, 47), "b.png": (20, 20)}.items():
    Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8)).save(source / name)
  words = [f"--input={source}", f"--output={output}", "--config=jpeg75", "--option=quality=40"]
  done = entry_point("purify", *words, "--config.seed=3")
  assert done.returncode == 0, done.stderr
  assert f"2 pictures purified by jpeg in {output}, 0 skipped" in done.stdout
  manifest = json.loads((output / "manifest.json").read_text())
  assert (manifest["method"], manifest["seed"]) == ("jpeg", 3)
  assert manifest["options"] == {"quality": 40, "codec": "libjpeg", "chroma_subsampling": True}
  assert {entry["file"] for entry in manifest["images"]} == {"a.png", "b.png"}
  assert Image.open(output / "a.png").size == (47, 33)


def test_an_error_is_one_line(tmp_path, entry_point):
  (tmp_path / "in").mkdir()
  words = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--method=impress"]
  done = entry_point("purify", *words)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "error: purifier impress works with a diffusion model: give --model=FOLDER" in done.stderr
  assert not (tmp_path / "out").exists()
