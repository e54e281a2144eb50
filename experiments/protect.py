"""Protects a folder of pictures with any method: folder in, folder out.

  python -m experiments.protect --input=PICTURES --output=PROTECTED --method=eudp

Pictures are centre-cropped and resized once to the model's size; that 8-bit reference is kept in
PROTECTED.work/clean, so that
  python -m experiments.verify --clean=PROTECTED.work/clean --protected=PROTECTED --radius_255=16
checks the budget. The config is `folder` unless told otherwise. The same command goes on
where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax import processes
from udp_jax.errors import ConfigError

_INPUT = flags.DEFINE_string("input", None, "Folder of pictures (or any data source).")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the protected pictures.")
_METHOD = flags.DEFINE_string(
  "method", "eudp", "A row of config.protections (eudp, udp, random_noise, ...) or any method."
)
_MODEL = flags.DEFINE_string(
  "model", "", "Diffusers folder of the attacked model, where one is needed."
)
_STRICT = flags.DEFINE_bool("strict", False, "An unusable picture is an error, not skipped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
  del argv
  if not _INPUT.value or not _OUTPUT.value:
    raise ConfigError("--input and --output are needed; see --help")
  from udp_jax import run_config, study
  from udp_jax.data import manifest
  from udp_jax.models import factory

  config = _CONFIG.value or _cli.get_config("eudp", "folder")
  output = Path(_OUTPUT.value)
  workdir = Path(_WORKDIR.value or f"{output}.work")
  with config.unlocked():
    config.data.source = _INPUT.value
    config.data.holdout = 0.0
    config.data.strict = _STRICT.value or config.data.strict
    config.rows = (_METHOD.value,)
    config.model.path = _MODEL.value or config.model.path
  run_config.check_values(config)
  processes.from_main(
    lambda: manifest.check_output(output, overwrite=_OVERWRITE.value), "look at the output"
  )
  model, _, params = factory.build(config.model, config.performance)
  study.build_protection(config, _METHOD.value, model, params)
  with config.unlocked():
    config.data.image_size = model.shape[0]
  clean = study.load_data(config)[0]
  run_config.check(config, workdir, clean, replace=_OVERWRITE.value)
  study.write_pictures(clean, workdir / "clean")
  study.protect_row(
    config,
    _METHOD.value,
    clean,
    workdir,
    model,
    params,
    folder=output,
    overwrite=_OVERWRITE.value,
    progress=_PROGRESS.value,
  )
  skipped = clean.origin.get("skipped") or []
  worst = (manifest.read_manifest(output) or {}).get("worst", {})
  print(
    f"{len(clean.images)} pictures protected in {output} (at most {worst.get('max_abs_255')} of "
    f"{config.radius_255:g} levels of change), {len(skipped)} skipped; clean reference: "
    f"{workdir / 'clean'}"
  )
  for file, reason in skipped:
    print(f"skipped: {file}: {reason}")
  return 0


if __name__ == "__main__":
  _cli.run(main, resumable=True)
