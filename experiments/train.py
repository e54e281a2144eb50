"""Trains a diffusion model on a folder of pictures: from scratch, or from a text-to-image model.

  python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train
  python -m experiments.train --method=lora --model=tiny_ldm --input=PICTURES \\
    --prompt='a painting' --workdir=runs/lora

From scratch: workdir/model, which `DDPMPipeline.from_pretrained` opens. Fine-tuning: workdir/model
for `StableDiffusionPipeline`, or workdir/adapter for `load_lora_weights` and
`load_textual_inversion`, and samples. Captions come from PICTURES/metadata.jsonl, lines of
{"file_name": ..., "text": ...}, from metadata.csv, from .caption or .txt files beside the pictures,
or from --prompt. --config.seed decides every draw. The same command goes on where a killed one
stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax import processes
from udp_jax.errors import ConfigError

_SCRATCH = "scratch"
_METHODS = (_SCRATCH, "full", "lora", "dreambooth", "textual_inversion")

_METHOD = flags.DEFINE_enum(
  "method", None, _METHODS, "How to train; default: the config's. Without --config: its defaults."
)
_MODEL = flags.DEFINE_string(
  "model", None, "Folder of the model to start from, or tiny_ldm; default: config.model.path."
)
_INPUT = flags.DEFINE_string("input", None, "Data source; default: config.data.source.")
_PROMPT = flags.DEFINE_string("prompt", None, "Caption of all pictures (fine-tuning).")
_CLASS_PROMPT = flags.DEFINE_string("class_prompt", None, "Caption of the class (DreamBooth).")
_CLASS_INPUT = flags.DEFINE_string(
  "class_input", None, "Pictures of the class (DreamBooth); default: made by the model."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("train")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
  del argv
  if (_CONFIG.value is None and _METHOD.value is None) or not _WORKDIR.value:
    raise ConfigError("--config (or --method) and --workdir are needed; see --help")
  config = _config()
  if not config.data.source:
    raise ConfigError("--input is needed: a folder of pictures")
  from udp_jax.data import places

  with places.use(config=config, work={"--workdir": _WORKDIR.value}) as used:
    if config.threat.name == _SCRATCH:
      return _train_from_scratch(config, used["--workdir"])
    return _fine_tune(config, used["--workdir"])


def _config() -> Any:
  """The config, with what the flags say of it."""
  method = _METHOD.value
  config = _CONFIG.value
  if config is None:
    packaged = _MODEL.value in (None, "tiny_ldm")
    kind = "tiny_ldm" if packaged else "sd15"
    config = _cli.get_config("train", "demo" if method == _SCRATCH else f"{method}_{kind}")
    if method != _SCRATCH and _MODEL.value is None:
      raise ConfigError("--model is needed: the folder of a text-to-image model, or tiny_ldm")
  if method not in (None, config.threat.name):
    raise ConfigError(f"--config is one for --method={config.threat.name}, not for {method}")
  given = {
    "model.path": _MODEL.value,
    "data.source": _INPUT.value,
    "data.prompt": _PROMPT.value,
    "prior.prompt": _CLASS_PROMPT.value,
    "prior.source": _CLASS_INPUT.value,
  }
  with config.unlocked():
    for name, value in given.items():
      section, field = name.split(".")
      if value is None:
        continue
      if section not in config or field not in config[section]:
        raise ConfigError(f"--method={config.threat.name} takes no {_flag(name)}")
      config[section][field] = value
    if _INPUT.value and "holdout" in config.data:
      config.data.holdout = 0.0
  return config


def _flag(name: str) -> str:
  return {"data.prompt": "--prompt", "prior.prompt": "--class_prompt"}.get(name, "--class_input")


def _train_from_scratch(config: Any, workdir: Path) -> int:
  import jax

  from udp_jax import run_config, study
  from udp_jax.models import factory
  from udp_jax.randomness import stream

  run_config.check_values(config)
  model, unet, params = factory.build(config.model, config.performance)
  threat = study.build_trainer(config, model)
  pictures = study.load_data(config)[0]
  study.check_sizes(config, pictures, model)
  run_config.check(config, workdir, pictures)
  study.train_model(
    config,
    pictures.images,
    workdir,
    threat,
    model,
    unet,
    key=stream(jax.random.key(config.seed), "train"),
    label="train",
    params=params,
    progress=_PROGRESS.value,
  )
  print(f"model: {workdir / 'model'} ({threat.train_steps} steps, {len(pictures.images)} pictures)")
  return 0


def _fine_tune(config: Any, workdir: Path) -> int:
  from udp_jax import finetune, run_config

  run_config.check_values(config)
  done = finetune.fine_tune(config, workdir, finetune.load_model(config), progress=_PROGRESS.value)
  if processes.is_main():
    what = "adapter" if done.threat.save is not None else "model"
    print(f"{what}: {done.saved} ({done.threat.train_steps} steps)")
    if done.samples is not None:
      print(f"samples: {workdir / 'samples'}")
  return 0


if __name__ == "__main__":
  _cli.run(main, resumable=True)
