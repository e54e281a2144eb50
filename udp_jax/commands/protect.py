"""Protects a folder of pictures: the main of `udp-jax protect` and `experiments.protect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from udp_jax.commands import cli
from udp_jax.data import budget
from udp_jax.errors import ConfigError
from udp_jax.runtime import processes

_INPUT = flags.DEFINE_string("input", None, "Folder of pictures (or any data source).")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the protected pictures.")
_METHOD = flags.DEFINE_string(
  "method", "eudp", "A row of config.protections (eudp, udp, random_noise, ...) or any method."
)
_MODEL = flags.DEFINE_string(
  "model",
  "",
  "Model to protect against: tiny_ldm, a FOLDER (Stable Diffusion 1.x or 2.x, or a DDPM, as "
  "diffusers writes it), or pixel: a small DDPM trained on these pictures alone. Default: the "
  "config's; without --config, methods that use a model need this flag.",
)
_RESIZE = flags.DEFINE_bool(
  "resize", False, "Centre-crop and resize to the model's size, instead of full resolution."
)
_TILE_SIZE = flags.DEFINE_integer(
  "tile_size", 0, "Side of a tile in pixels; 0 for the size that the model was made for."
)
_OVERLAP = flags.DEFINE_integer(
  "overlap", -1, "Pixels over which neighbouring tiles blend; -1 for an eighth of a tile."
)
_FILES = flags.DEFINE_integer(
  "files_at_a_time", 0, "Pictures in memory together; 0 for the method's default, see above."
)
_MASK = flags.DEFINE_string(
  "mask",
  "",
  "Protect only where this is white: one mask, or a folder of masks with the pictures' names.",
)
_PROMPT = flags.DEFINE_string(
  "prompt",
  None,
  "For models with text: the caption of pictures that have none in their folder.",
)
_STRICT = flags.DEFINE_bool("strict", False, "An unusable picture is an error, not skipped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_STRENGTH = flags.DEFINE_string(
  "strength",
  None,
  "The budget by name, instead of --radius_255: "
  + ", ".join(f"{name} ({levels:g})" for name, levels in budget.STRENGTHS.items())
  + ", or a number of 8-bit levels; the step is an eighth of it. Weaker is harder to see and "
  "easier to remove.",
)
_BUDGET = cli.budget_flags()
_CONFIG = cli.define_config("eudp")
_WORKDIR = cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Protects what the flags ask for; returns the exit code."""
  del argv
  if not _INPUT.value or not _OUTPUT.value:
    raise ConfigError("--input and --output are needed; see --help")
  from udp_jax.data import places

  config = _CONFIG.value or cli.get_config("eudp", "folder")
  with places.use(
    pictures={"--input": _INPUT.value, "--mask": _MASK.value},
    named={"--model": _MODEL.value or config.model.path},
    outputs={"--output": _OUTPUT.value},
    work={"--workdir": _WORKDIR.value or places.work_beside(_OUTPUT.value)},
    protects=True,
  ) as used:
    return _protect(config, used["--output"], used["--workdir"])


def _protect(config: Any, output: Path, workdir: Path) -> int:
  from udp_jax.data import manifest, naming
  from udp_jax.stages import protect_pictures
  from udp_jax.studies import settings

  assert _INPUT.value is not None
  place = _INPUT.value.removeprefix("folder:")
  resize = _RESIZE.value or not Path(place).expanduser().is_dir()
  changes: dict[str, Any] = {
    "data.source": _INPUT.value,
    "data.holdout": 0.0,
    "data.strict": _STRICT.value or config.data.strict,
    "rows": (_METHOD.value,),
  }
  changes |= _model_changes(config) | _BUDGET.changes(
    config, row=_METHOD.value, named=_STRENGTH.value
  )
  config = settings.frozen(config, changes)
  settings.check_values(config)
  # Whether a finished output lacks anything is known only once its pictures are read.
  extend = not resize and protect_pictures.may_extend(_METHOD.value, output)
  processes.from_main(
    lambda: manifest.check_output(
      output, overwrite=_OVERWRITE.value, extend=extend, inputs_follow=True
    ),
    "look at the output",
  )
  if resize:
    made, origin = _protect_resized(config, output, workdir)
  else:
    made, origin = _protect_full_size(config, Path(place).expanduser(), output, workdir)
  skipped = origin.get("skipped") or []
  stayed = len(made["images"]) - origin["count"]
  also = f", {stayed} more stay there whose pictures are not in the input" if stayed else ""
  print(
    f"{origin['count']} pictures protected in {output}{also} (at most "
    f"{made.get('worst', {}).get('max_abs_255')} of {made['radius_255']:g} levels of change), "
    f"{len(skipped)} skipped; clean reference: {workdir / 'clean'}"
  )
  print(f"protected against {made['against']['statement']}")
  print(
    f"check the budget: {cli.command('verify')} --clean={workdir / 'clean'} "
    f"--protected={output} --radius_255={made['radius_255']:g}"
  )
  for file, reason in skipped:
    print(naming.printable(f"skipped: {file}: {reason}"))
  return 0


def _model_changes(config: Any) -> dict[str, Any]:
  """Returns the config values that --model sets, if any.

  Raises:
    ConfigError: no model is named, but the method uses one.
  """
  from udp_jax import protections
  from udp_jax.models import places
  from udp_jax.studies import rows

  method = _METHOD.value
  known = method in config.protections or method in protections.available()
  if known and not _MODEL.value and _CONFIG.value is None and rows.uses_model(config, method):
    raise ConfigError(
      f"{method} protects against a model: give --model=tiny_ldm (the small latent diffusion model "
      "of this package), --model=FOLDER (Stable Diffusion 1.x or 2.x, as diffusers writes it) or "
      f"--model={places.FRESH} (a small pixel DDPM trained on these pictures alone)"
    )
  if _MODEL.value == places.FRESH:
    fresh = {"model.path": ""}
    # Without this, the run would ask for a folder.
    return fresh | ({"model.architecture": ""} if "architecture" in config.model else {})
  return {"model.path": _MODEL.value} if _MODEL.value else {}


def _protect_full_size(
  config: Any, folder: Path, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects pictures at full resolution; returns the manifest and the pictures' origin."""
  from udp_jax.studies import pictures

  if _TILE_SIZE.value < 0:
    raise ConfigError(f"--tile_size is {_TILE_SIZE.value}: it must be positive, or 0")
  asked = pictures.Asked(
    _METHOD.value,
    folder,
    output,
    workdir,
    pictures.Cutting(_TILE_SIZE.value, _OVERLAP.value, _FILES.value),
    mask=_MASK.value,
    prompt=_PROMPT.value or config.data.get("prompt") or None,
    overwrite=_OVERWRITE.value,
    progress=_PROGRESS.value,
  )
  return pictures.protect_folder(config, asked)


def _protect_resized(
  config: Any, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects pictures resized to the model's size; returns the manifest and their origin."""
  from udp_jax.data import manifest, originals
  from udp_jax.models import pipeline
  from udp_jax.studies import build, settings

  given = {"--tile_size": _TILE_SIZE.value, "--mask": _MASK.value, "--prompt": _PROMPT.value}
  for flag, value in given.items():
    if value:
      raise ConfigError(f"{flag} is for pictures at full resolution, from a folder")
  if config.model.path and pipeline.is_pipeline(config.model.path):
    raise ConfigError("only models of pixels have pictures resized: give a folder, not --resize")
  study = build.open_study(config, workdir, progress=_PROGRESS.value)
  build.build_protection(config, _METHOD.value, study.model)
  size = study.model.model.shape[0]
  study = study._replace(config=settings.frozen(config, {"data.image_size": size}))
  clean = build.load_data(study.config)[0]

  def look() -> list[str]:
    sources, sets = originals.sources_of(clean), (clean.origin["sha256"],)
    copies = originals.copies(output, workdir, sources, sets)
    manifest.check_output(output, overwrite=_OVERWRITE.value, copies=copies)
    return sorted(copies)

  copies = processes.from_main(look, "look at the output")  # Before anything is cleared.
  settings.check(study.config, workdir, clean, replace=_OVERWRITE.value)
  build.write_pictures(clean, workdir / "clean")
  build.protect_row(
    study, _METHOD.value, clean, folder=output, overwrite=_OVERWRITE.value, copies=copies
  )
  return manifest.read_manifest(output) or {}, clean.origin


def start(call: cli.Call | None = None) -> None:
  """Runs `main`, as `udp-jax` calls it or as a main of `experiments`."""
  cli.run(main, resumable=True, call=call)
