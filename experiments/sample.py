"""Samples pictures from a diffusion model with DDIM: model folder in, picture folder out.

python -m experiments.sample --model=runs/train/model --output=runs/samples --num_samples=64
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax import processes
from udp_jax.errors import ConfigError

_MODEL = flags.DEFINE_string("model", None, "Diffusers folder of the model.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the samples.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "How many.", lower_bound=1)
_STEPS = flags.DEFINE_integer("sample_steps", 50, "Steps of DDIM.", lower_bound=1)
_ETA = flags.DEFINE_float(
  "eta", 0.0, "Of DDIM: 0 is deterministic, 1 as noisy as DDPM.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
_BATCH = flags.DEFINE_integer("per_device_batch_size", 64, "Samples at a time.", lower_bound=1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
  del argv
  if not _MODEL.value or not _OUTPUT.value:
    raise ConfigError("--model and --output are needed; see --help")
  import jax

  from udp_jax import stages, threats
  from udp_jax.data import manifest
  from udp_jax.models import factory

  output = Path(_OUTPUT.value)
  processes.from_main(
    lambda: manifest.check_output(output, overwrite=_OVERWRITE.value), "look at the output"
  )
  model, _, params = factory.load(_MODEL.value)
  options = {"train_steps": 0, "sample_steps": _STEPS.value, "eta": _ETA.value}
  try:
    threat = threats.build("scratch", model, options)
    stages.sample_stage(
      threat,
      params,
      output,
      key=jax.random.key(_SEED.value),
      num_samples=_NUM_SAMPLES.value,
      per_device_batch_size=_BATCH.value,
      record={"method": "samples", "model": _MODEL.value, "seed": _SEED.value, **options},
      label="sample",
      overwrite=_OVERWRITE.value,
      progress=_PROGRESS.value,
    )
  except ValueError as error:  # The samplers' word on step counts that the schedule cannot serve.
    raise ConfigError(str(error)) from error
  print(f"{_NUM_SAMPLES.value} samples: {_OUTPUT.value}")
  return 0


if __name__ == "__main__":
  _cli.run(main)
