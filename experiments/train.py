"""Trains a diffusion model from scratch on a folder of pictures (or any data source).

  python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train

Writes workdir/model in diffusers' layout (`DDPMPipeline.from_pretrained` opens it), metrics.jsonl
and checkpoints; --config.seed decides every draw. The same command goes on where a
killed one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_INPUT = flags.DEFINE_string("input", None, "Data source; default: config.data.source.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
  del argv
  config = _CONFIG.value
  if config is None or not _WORKDIR.value:
    raise ConfigError("--config and --workdir are needed; see --help")
  import jax

  from udp_jax import run_config, study
  from udp_jax.models import factory
  from udp_jax.randomness import stream

  with config.unlocked():
    config.data.source = _INPUT.value or config.data.source
    config.data.holdout = 0.0 if _INPUT.value else config.data.holdout
  if not config.data.source:
    raise ConfigError("--input is needed: a folder of pictures")
  run_config.check_values(config)
  workdir = Path(_WORKDIR.value)
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


if __name__ == "__main__":
  _cli.run(main, resumable=True)
