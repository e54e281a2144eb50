"""`experiments.purify` and its configs; tests/stages/test_purify.py has the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from experiments import _cli
from tests.models.restorers import taef_tensors
from udp_jax import purifiers, registry
from udp_jax.models import factory

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


def test_diffpure_with_a_prior_of_its_own(tmp_path, entry_point, tiny_model):
  source, output, prior = tmp_path / "source", tmp_path / "purified", tmp_path / "prior"
  source.mkdir()
  levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
  Image.fromarray(levels).save(source / "a.png")
  factory.save(prior, tiny_model.model, tiny_model.config, tiny_model.params)
  words = [f"--input={source}", f"--output={output}", "--option=timestep=2"]
  words += ["--method=diffpure", "--model=tiny_ldm"]  # Whose pictures have 64x64.
  done = entry_point("purify", *words, f"--purifier_model={prior}")
  assert done.returncode == 0, done.stderr
  record = json.loads((output / "manifest.json").read_text())
  assert (record["model"], record["purifier_model"]) == ("tiny_ldm", "prior")
  assert record["options"]["variance"] == "fixed_small"
  # A finished folder is not extended with another prior.
  done = entry_point("purify", *words[:-1], f"--model={prior}")
  assert done.returncode == 4 and "it is a finished output already" in done.stderr
  words = [f"--input={source}", f"--output={tmp_path / 'other'}", "--method=jpeg"]
  done = entry_point("purify", *words, f"--purifier_model={prior}")
  assert done.returncode == 2
  assert "jpeg has no prior: --purifier_model is for diffpure, freqpure and gridpure" in done.stderr


def test_a_chain_goes_through(tmp_path, entry_point):
  (tmp_path / "in").mkdir()
  Image.new("RGB", (16, 16), (9, 80, 200)).save(tmp_path / "in" / "a.png")
  methods = [{"name": "gaussian_blur"}, {"name": "jpeg", "quality": 60}]
  words = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--method=chain"]
  words.append(f"--option=methods={json.dumps(methods)}")
  for _ in range(2):  # The second time there is nothing to do.
    done = entry_point("purify", *words)
    assert done.returncode == 0, done.stderr
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert manifest["options"] == {"methods": methods} and "budgets" not in manifest


@pytest.mark.slow
@pytest.mark.parametrize("chained", [False, True])
def test_the_distance_of_impress_is_recorded(tmp_path, entry_point, chained):
  (tmp_path / "in").mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
  options = {"num_steps": 1, "perceptual": "effnet_lite0_distance", "perceptual_budget": 0.05}
  given = {"methods": [{"name": "impress"} | options]} if chained else options
  words = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--model=tiny_ldm"]
  words += [f"--option={name}={json.dumps(value)}" for name, value in given.items()]
  done = entry_point("purify", *words, f"--method={'chain' if chained else 'impress'}")
  assert done.returncode == 0, done.stderr
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  found = manifest["options"]["methods"][0] if chained else manifest["options"]
  assert options.items() <= found.items()
  assert manifest["budgets"] == "in units of LPIPS (VGG16)"


def test_an_error_is_one_line(tmp_path, entry_point):
  (tmp_path / "in").mkdir()
  words = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--method=impress"]
  done = entry_point("purify", *words)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "error: purifier impress works with a diffusion model: give --model=FOLDER" in done.stderr
  assert not (tmp_path / "out").exists()


def test_through_another_autoencoder(tmp_path, entry_point):
  """Its name and a hash of its files are recorded; other files of that name are another one."""
  source, output, taef = tmp_path / "in", tmp_path / "out", tmp_path / "taef"
  taef.mkdir()
  source.mkdir()
  for side, tensors in zip(("encoder", "decoder"), taef_tensors()):
    np.savez(taef / f"{side}.npz", **tensors)
  Image.new("RGB", (13, 10), (9, 80, 200)).save(source / "a.png")
  words = [f"--input={source}", f"--output={output}", "--method=vae_trans"]
  done = entry_point("purify", *words)
  assert done.returncode == 2 and "vae_trans needs the option(s) autoencoder" in done.stderr
  words.append(f"--option=autoencoder={taef}")
  done = entry_point("purify", *words)
  assert done.returncode == 0, done.stderr
  record = json.loads((output / "manifest.json").read_text())
  assert record["options"] == {"autoencoder": "taef", "num_passes": 1}
  assert len(record["autoencoder_sha256"]) == 64
  assert str(tmp_path) not in (output / "manifest.json").read_text()
  for side, tensors in zip(("encoder", "decoder"), taef_tensors(seed=1)):
    np.savez(taef / f"{side}.npz", **tensors)
  done = entry_point("purify", *words)
  assert done.returncode == 4 and "it is a finished output already" in done.stderr
