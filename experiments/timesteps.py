"""Measures which timesteps are useful to a perturbation against a model, for probs="measured".

  python -m experiments.timesteps --model=tiny_ldm --input=PICTURES --output=runs/timesteps
  python -m experiments.eudp --config=tiny_ldm --config.model.timestep_probs=runs/timesteps \\
    --config.protections.eudp.probs=measured --workdir=runs/measured

For random pictures it takes the sign of the gradient of the denoising loss at single timesteps and
measures how far a step along it raises the loss over all timesteps, to first order. It writes
timesteps.json, with a hash of the model, and timesteps.svg. 64 pictures against tiny_ldm take a few
minutes on 2 CPU cores. Pictures that are protected already measure the steps from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_MODEL = flags.DEFINE_string(
  "model", None, "Trained model: Stable Diffusion or a DDPM, as for `protect`, or tiny_ldm."
)
_INPUT = flags.DEFINE_string(
  "input", "builtin", "Source of pictures: a folder, npz:FILE, cifar10:FOLDER, builtin, ..."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for timesteps.json and timesteps.svg.")
_PICTURES = flags.DEFINE_integer("num_pictures", 64, "Number of pictures.", lower_bound=2)
_STRATA = flags.DEFINE_integer("strata", 32, "Number of strata of timesteps.", lower_bound=2)
_DRAWS = flags.DEFINE_integer(
  "draws", 2, "(timestep, noise) pairs of a picture in every stratum.", lower_bound=2
)
_PROMPT = flags.DEFINE_string("prompt", "", "Prompt of all pictures, for models with text.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the computation.")
_SEED = flags.DEFINE_integer("seed", 0, "Chooses the pictures and decides every draw.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Pictures at a time.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
  """Measures what the flags ask for; returns the exit code."""
  del argv
  if not _MODEL.value or not _OUTPUT.value:
    raise ConfigError("--model and --output are needed; see --help")
  from udp_jax.data import places

  with places.use(
    pictures={"--input": _INPUT.value},
    named={"--model": _MODEL.value},
    outputs={"--output": _OUTPUT.value},
  ) as used:
    return _measure(used["--output"])


def _measure(output: Path) -> int:
  from ml_collections import ConfigDict

  from udp_jax.data import sources
  from udp_jax.metrics import usefulness
  from udp_jax.models import factory
  from udp_jax.models import places as models
  from udp_jax.studies import usefulness as study

  assert _MODEL.value is not None
  path = models.pinned(_MODEL.value)
  model = factory.open_model(ConfigDict({"path": path}), {"dtype": _DTYPE.value})
  if _PROMPT.value and model.tokenizer is None:
    raise ConfigError("--prompt is for models with a text encoder; this one has none")
  size = model.model.image_shape[0]
  pictures = sources.load(_INPUT.value, image_size=size, limit=_PICTURES.value, seed=_SEED.value)
  count = len(pictures.images)
  found = usefulness.measure(
    model.model,
    model.params,
    pictures.images,
    model.embeddings([_PROMPT.value] * count),
    num_strata=_STRATA.value,
    draws=_DRAWS.value,
    seed=_SEED.value,
    batch_size=_BATCH.value,
  )
  settings = {"seed": _SEED.value, "draws": _DRAWS.value, "prompt": _PROMPT.value}
  settings |= {"dtype": _DTYPE.value, "input": _INPUT.value}
  record = study.describe(found, path, model.model, pictures, settings, model.unet)
  study.write(output, record)
  print("expected ascent of the uniform loss by a sign step, per unit of step size (+- SE):")
  for line in record["expected"]:
    print(
      f"  p(t) ~ abar^{line['a']:g} (1 - abar)^{line['b']:g}  {line['ascent']:.4g} "
      f"+- {line['se']:.2g}, uniform {line['more']:+.3g} +- {line['more_se']:.2g}"
    )
  best = max(range(len(record["usefulness"])), key=record["usefulness"].__getitem__)
  print(
    f"most useful: t = {record['timesteps'][best]:g} of {record['num_steps']} (abar "
    f"{record['alphas_cumprod'][best]:.3g}), {record['usefulness'][best]:.4g}"
  )
  print(f"{count} pictures: {output / study.FILE}")
  return 0


if __name__ == "__main__":
  _cli.run(main, several=False)
