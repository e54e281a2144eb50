"""Protects a folder of pictures at full resolution with any method.

  python -m experiments.protect --input=PICTURES --output=PROTECTED --method=eudp --model=tiny_ldm

Pictures may have any size: they are cut into overlapping tiles of the model's size. The saved PNG
files are lossless and keep size, names, transparency, colour profile, EXIF, XMP, IPTC, texts,
resolution and captions (metadata.jsonl, metadata.csv, .txt and .caption files); grey pictures stay
grey. Previews of the clean picture, GPS positions and serial numbers are removed;
`python -m udp_jax.data.metadata` prints what happens to each kind of metadata.
The upright 8-bit reference is kept in PROTECTED.work/clean, so that
  python -m experiments.verify --clean=PROTECTED.work/clean --protected=PROTECTED --radius_255=16
checks the budget. --model is the model to protect against; the manifest says how much that is
worth. The default config is `folder`. After a kill, the same command continues at the next file or
in the middle of the work on a group of files. On a finished output, methods that do not train a
surrogate make only the missing files: those of added or changed pictures, and deleted ones.
--overwrite replaces only files that an earlier run wrote: no file whose bytes differ from that
run's, and none that may be the last copy of a picture.

Methods that train a surrogate (udp, eudp) learn from all pictures together and hold all of their
tiles in memory; other methods work on 8 pictures at a time. --files_at_a_time sets another number:
fewer pictures need less memory. A picture has at most 100 megapixels and no side above 100,000
pixels; work on a picture of 100 megapixels takes about 7 GiB of memory.

--resize centre-crops and resizes every picture to the model's size instead, as studies of small
models need; sources that are not folders (builtin, npz:, cifar10:, tfds:) are always resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
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
  "Model to protect against: tiny_ldm, a FOLDER (Stable Diffusion 1.x, 2.x or XL, or a DDPM, as "
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
_BUDGET = _cli.budget_flags()
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Protects what the flags ask for; returns the exit code."""
  del argv
  if not _INPUT.value or not _OUTPUT.value:
    raise ConfigError("--input and --output are needed; see --help")
  from udp_jax.data import places

  config = _CONFIG.value or _cli.get_config("eudp", "folder")
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
  changes |= _model_changes(config) | _BUDGET.changes(config, row=_METHOD.value)
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
    f"check the budget: python -m experiments.verify --clean={workdir / 'clean'} "
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
      "of this package), --model=FOLDER (Stable Diffusion 1.x, 2.x or XL, as diffusers writes it), "
      f"or --model={places.FRESH} (a small pixel DDPM trained on these pictures alone)"
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
  from udp_jax.data import manifest, masks
  from udp_jax.stages import protect_pictures
  from udp_jax.studies import pictures as pictures_lib
  from udp_jax.studies import settings

  if _TILE_SIZE.value < 0:
    raise ConfigError(f"--tile_size is {_TILE_SIZE.value}: it must be positive, or 0")
  study, pictures = pictures_lib.open_pictures(
    settings.frozen(config, {"data.image_size": 0}),
    folder,
    workdir,
    pictures_lib.Cutting(_TILE_SIZE.value, _OVERLAP.value, _FILES.value),
    prompt=_PROMPT.value or config.data.get("prompt") or None,
    progress=_PROGRESS.value,
  )
  found = pictures.found
  if _MASK.value:
    pictures = pictures._replace(mask_files=masks.find(_MASK.value, found.files))
  digest = masks.sha256(pictures.mask_files) if pictures.mask_files else None
  row, overwrite = study.row(_METHOD.value), _OVERWRITE.value
  if not overwrite:
    protect_pictures.check_finished(row, pictures, output)
  # Checked before anything in the work folder may be cleared.
  copies = protect_pictures.copies_of(pictures, output)
  if overwrite:
    manifest.check_output(output, overwrite=True, copies=copies)
  apart = protect_pictures.treats_apart(row)
  pictures_lib.check_workdir(study, pictures, replace=overwrite, apart=apart, masks=digest)
  made = pictures_lib.protect_row(
    study, _METHOD.value, pictures, output, overwrite=overwrite, copies=copies
  )
  return made, found.origin


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


if __name__ == "__main__":
  _cli.run(main, resumable=True)
