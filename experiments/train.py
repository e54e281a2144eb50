"""Trains a diffusion model on a folder of pictures: from scratch, or from a text-to-image model.

  python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train
  python -m experiments.train --method=lora --model=tiny_ldm --input=PICTURES \\
    --prompt='a painting' --workdir=runs/lora

Training from scratch writes workdir/model, which `DDPMPipeline.from_pretrained` opens. Fine-tuning
writes workdir/model for `StableDiffusionPipeline`, or workdir/adapter for `load_lora_weights` and
`load_textual_inversion`, and samples. Captions come from PICTURES/metadata.jsonl, lines of
{"file_name": ..., "text": ...}, from metadata.csv, from .caption or .txt files beside the pictures,
or from --prompt. --config.seed decides every draw. After a kill, the same command continues the
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError
from udp_jax.runtime import processes

_SCRATCH = "scratch"
_METHODS = (_SCRATCH, "full", "lora", "dreambooth", "textual_inversion")

_METHOD = flags.DEFINE_enum(
  "method", None, _METHODS, "How to train; default: the config's. Without --config: its defaults."
)
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "Model to start from: a folder, a .safetensors file, OWNER/NAME on the Hugging Face Hub, or "
  "tiny_ldm; default: config.model.path.",
)
_PARTS = _cli.model_flags()
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
  """Trains what the flags ask for; returns the exit code."""
  del argv
  if (_CONFIG.value is None and _METHOD.value is None) or not _WORKDIR.value:
    raise ConfigError("--config (or --method) and --workdir are needed; see --help")
  config = _config()
  if not config.data.source:
    raise ConfigError("--input is needed: a folder of pictures")
  from udp_jax.data import places
  from udp_jax.studies import settings

  with places.use(config=config, work={"--workdir": _WORKDIR.value}) as used:
    config = settings.frozen(config, settings.pinned(config))
    if config.threat.name == _SCRATCH:
      return _train_from_scratch(config, used["--workdir"])
    return _fine_tune(config, used["--workdir"])


def _config() -> Any:
  """Returns the config with the values of the flags."""
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
  changes: dict[str, Any] = {}
  for name, value in given.items():
    section, field = name.split(".")
    if value is None:
      continue
    if section not in config or field not in config[section]:
      raise ConfigError(f"--method={config.threat.name} takes no {_flag(name)}")
    changes[name] = value
  if _INPUT.value and "holdout" in config.data:
    changes["data.holdout"] = 0.0
  from udp_jax.studies import settings

  return settings.frozen(config, changes | _PARTS.changes())


def _flag(name: str) -> str:
  return {"data.prompt": "--prompt", "prior.prompt": "--class_prompt"}.get(name, "--class_input")


def _train_from_scratch(config: Any, workdir: Path) -> int:
  from udp_jax.studies import build, settings

  study = build.open_study(config, workdir, progress=_PROGRESS.value)
  threat = build.build_trainer(study)
  pictures = build.load_data(config)[0]
  build.check_sizes(config, pictures, study.model.model)
  settings.check(config, workdir, pictures)
  run = study.run("train", workdir, "train", checkpoint_every=config.checkpoint.every_steps)
  build.train_model(study, pictures.images, threat, run, params=study.model.params)
  print(f"model: {workdir / 'model'} ({threat.train_steps} steps, {len(pictures.images)} pictures)")
  return 0


def _fine_tune(config: Any, workdir: Path) -> int:
  from udp_jax.studies import build, fine_tuning, settings

  settings.check_values(config)  # Before a model is read.
  model = fine_tuning.load_model(config)
  done = fine_tuning.fine_tune(build.open_study(config, workdir, model, progress=_PROGRESS.value))
  if processes.is_main():
    what = "adapter" if done.threat.save is not None else "model"
    print(f"{what}: {done.saved} ({done.threat.train_steps} steps)")
    if done.samples is not None:
      print(f"samples: {workdir / 'samples'}")
  return 0


if __name__ == "__main__":
  _cli.run(main, resumable=True)
