"""Trains a diffusion model from scratch on a folder of pictures (or any data source).

  python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train

Writes workdir/model in diffusers' layout (`DDPMPipeline.from_pretrained` opens it), metrics.jsonl
and checkpoints. The same command goes on where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_INPUT = flags.DEFINE_string("input", None, "Data source; default: config.data.source.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the model's start and of every draw.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
  del argv
  import jax

  from udp_jax import parallel, stages, study, threats
  from udp_jax.models import factory
  from udp_jax.randomness import stream

  config = _CONFIG.value
  if config is None or not _WORKDIR.value:
    raise ConfigError("--config and --workdir are needed; see --help")
  with config.unlocked():
    config.data.source = _INPUT.value or config.data.source
    config.data.holdout = 0 if _INPUT.value else config.data.holdout
  workdir = Path(_WORKDIR.value)
  study.check_config(config, workdir)
  pictures = study.load_data(config)[0]
  model, unet, params = factory.build(config.model, config.performance)
  threat = threats.build(config.threat.name, model, dict(config.threat.options))
  trained = stages.train_stage(
    threat,
    pictures.images,
    key=stream(jax.random.key(_SEED.value), "train"),
    params=params,
    mesh=parallel.make_mesh(),
    global_batch_size=config.global_batch_size,
    scratch_folder=workdir,
    checkpoint_every=config.checkpoint.every_steps,
    steps_per_call=config.performance.steps_per_call,
    label="train",
    progress=_PROGRESS.value,
  )
  factory.save(workdir / "model", model, unet, trained)
  print(f"model: {workdir / 'model'} ({threat.train_steps} steps, {len(pictures.images)} pictures)")
  return 0


if __name__ == "__main__":
  _cli.run(main)
