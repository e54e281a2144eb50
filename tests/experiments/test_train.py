"""`experiments.train` beyond scratch: its configs, its words for mistakes, and whole short runs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import _cli
from experiments.configs import finetuning
from udp_jax import threats
from udp_jax.errors import ConfigError
from udp_jax.models import learned_tokens, lora_files, pipeline
from udp_jax.models.context import Model
from udp_jax.studies import build, fine_tuning, settings

MODELS = ("sd15", "sdxl", "ldm")
NAMES = [n for n in _cli.config_names("train") if n.rsplit("_", 1)[-1] in MODELS]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Five pictures of different sizes with captions."""
  folder = tmp_path_factory.mktemp("pictures")
  lines = []
  for i in range(5):
    pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    lines.append(json.dumps({"file_name": f"{i}.png", "text": "a painting of a dog"}))
  (folder / "metadata.jsonl").write_text("\n".join(lines))
  return folder


def test_there_is_a_config_for_every_method_and_model() -> None:
  every = {f"{m}_{k}" for m in finetuning.METHODS for k in ("sd15", "tiny_ldm")}
  assert set(NAMES) == every | {"lora_sdxl", "dreambooth_sdxl"}


@pytest.mark.parametrize("variant", ["", *_cli.VARIANTS])
@pytest.mark.parametrize("name", NAMES)
def test_threats_build_from_the_configs(name: str, variant: str, tiny_pipeline) -> None:
  config = _cli.get_config("train", f"{name}:{variant}")
  settings.check_values(config)
  assert name.startswith(config.threat.name)
  assert config.model.path == ("tiny_ldm" if name.endswith("tiny_ldm") else "")
  assert set(config.performance) >= {"dtype", "frozen_dtype", "remat"}
  options = dict(config.threat.options) | {"scheduler": tiny_pipeline.scheduler}
  if config.threat.name == fine_tuning.CONCEPT:
    options |= {"token_ids": [1], "init_from": 0}
  threat = threats.build(config.threat.name, tiny_pipeline.model, options)
  assert threat.train_steps == config.threat.options.train_steps
  # XL's is published without class pictures.
  prior = config.threat.name == "dreambooth" and not name.endswith("xl")
  assert threat.prior_weight == prior
  if threat.prior_weight:
    assert config.global_batch_size % 2 == 0


def test_a_run_that_cannot_work_is_refused_before_anything_is_written(
  pictures: Path, tiny_pipeline, tmp_path: Path
) -> None:
  def error(name: str, **fields) -> str:
    config = _cli.get_config("train", name)
    config.data.source = str(pictures)
    found = tiny_pipeline
    opened = Model(found.model, found.params, pipeline=found)
    with config.unlocked():
      for field, value in fields.items():
        section, _, inner = field.partition("__")
        config[section].update({inner: value})
    with pytest.raises(ConfigError) as raised:
      fine_tuning.fine_tune(build.open_study(config, tmp_path, opened, progress=False))
    assert not list(tmp_path.iterdir())
    return str(raised.value)

  assert "give --class_prompt" in error("dreambooth_sd15")
  assert "sentences of its own" in error("textual_inversion_sd15", data__prompt="a cat")
  assert "tokens of this vocabulary" in error(
    "textual_inversion_sd15", concept__init_word="cat dog"
  )
  config = _cli.get_config("train", "lora_sd15")
  with pytest.raises(ConfigError, match="give --model=FOLDER"):
    fine_tuning.load_model(config)


def test_words_for_mistakes(entry_point, pictures: Path, tmp_path: Path) -> None:
  def error(*words: str) -> str:
    done = entry_point("train", f"--workdir={tmp_path / 'run'}", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr

  assert "--config is one for --method=lora, not for full" in error(
    "--config=lora_tiny_ldm", "--method=full"
  )
  assert "--model is needed" in error("--method=lora", f"--input={pictures}")
  assert "--method=scratch takes no --prompt" in error("--config=demo:smoke", "--prompt=a cat")
  assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("method", finetuning.METHODS)
def test_whole_runs(
  method: str, entry_point, pictures: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
  workdir = tmp_path / "run"
  words = [f"--config={method}_sd15:smoke", f"--model={tiny_pipeline_folder}"]
  words += [f"--input={pictures}", f"--workdir={workdir}"]
  words += {
    "dreambooth": ["--class_prompt=a dog", "--prompt=the dog"],
    "textual_inversion": ["--config.concept.init_word=a", "--config.concept.num_vectors=2"],
  }.get(method, [])
  done = entry_point("train", *words)
  assert done.returncode == 0, done.stderr
  opened = pipeline.load_pipeline(tiny_pipeline_folder)
  if method == "lora":
    assert set(lora_files.load_lora(workdir / "adapter", opened.params)) == {"unet"}
  elif method == "textual_inversion":
    token, vectors = learned_tokens.load_learned_token(workdir / "adapter")
    assert token == "<concept>" and vectors.shape == (2, 16)
  else:
    trained = pipeline.load_pipeline(workdir / "model")
    # bfloat16 was for the computation: what nothing trained is as it was.
    for part, same in (("vae", True), ("unet", False), ("text_encoder", method == "full")):
      new, old = _flat(trained.params[part]), _flat(opened.params[part])
      assert np.array_equal(new, old) == same, part
  assert len(list((workdir / "samples").glob("*.png"))) == 2
  assert (workdir / "class_pictures").exists() == (method == "dreambooth")
  # The same command has nothing left to do, and another one does not mix with it.
  again = entry_point("train", *words)
  assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
  other = entry_point("train", *words, "--config.seed=1")
  assert other.returncode == 2 and "another config" in other.stderr


def _flat(tree) -> np.ndarray:
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
