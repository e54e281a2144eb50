"""Trains a small text-conditioned latent diffusion model: autoencoder, then U-Net and text encoder.

  python -m experiments.train_ldm --config=tiny_ldm --workdir=runs/tiny_ldm

Writes workdir/model, a StableDiffusionPipeline folder, and beside it pictures of the model's
reconstructions and samples. --config.seed decides every draw. After a kill, the same command
continues the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("train_ldm")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Trains what the flags ask for; returns the exit code."""
  del argv
  config = _CONFIG.value
  if config is None or not _WORKDIR.value:
    raise ConfigError("--config and --workdir are needed; see --help")
  from udp_jax.data import places

  with places.use(config=config, work={"--workdir": _WORKDIR.value}) as used:
    return _train(config, used["--workdir"])


def _train(config: Any, workdir: Path) -> int:
  from udp_jax.studies import settings
  from udp_jax.studies.tiny_ldm import run

  results = run.run(settings.frozen(config), workdir, progress=_PROGRESS.value)
  for concept, found in results["reconstruction"].items():
    print(f"reconstruction of held-out pictures: {found['psnr']:5.2f} dB  {concept}")
  for part, loss in results["denoising"].items():
    print(f"denoising loss, {part} pictures: {loss:.4f}")
  print(f"model: {workdir / 'model'}")
  return 0


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
