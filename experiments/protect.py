"""Protects a folder of pictures with any method: folder in, folder out, at full resolution.

  python -m experiments.protect --input=PICTURES --output=PROTECTED --method=eudp --model=tiny_ldm

Pictures may be of any size: they are cut into overlapping tiles of the model's size, and the saved
PNG files are lossless, as large as they were, grey where they were grey, with their names,
transparency, colour profile, EXIF, XMP, IPTC, texts, resolution and captions (metadata.jsonl,
metadata.csv, .txt and .caption files). Previews of the clean picture, GPS positions and serial
numbers stay behind; `python -m udp_jax.data.metadata` prints what becomes of each thing.
The upright 8-bit reference is kept in PROTECTED.work/clean, so that
  python -m experiments.verify --clean=PROTECTED.work/clean --protected=PROTECTED --radius_255=16
checks the budget. --model is what to protect against; the manifest says what that is worth. The
config is `folder` unless told otherwise. The same command goes on where a killed one stopped, at
the next file or in the middle of the work on a group of them. On a finished output, methods other
than those that train a surrogate make what is missing: pictures that were added or changed, files
that were deleted. --overwrite replaces what an earlier run wrote, and nothing else: no file whose
bytes are not that run's, and none that may be the last copy of a picture.

Methods that train a surrogate (udp, eudp) learn from all pictures together and hold all of their
tiles in memory; other methods work on 8 pictures at a time. --files_at_a_time sets another number:
fewer need less memory. A picture has at most 100 megapixels and no side above 100,000 pixels; one
of 100 megapixels takes about 7 GiB of memory while it is worked on.

--resize centre-crops and resizes every picture to the model's size instead, which is what a study
of small models wants; sources that are no folders (builtin, npz:, cifar10:, tfds:) always are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
_BUDGET = _cli.budget_flags()
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
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
  from udp_jax import pictures, run_config
  from udp_jax.data import manifest, naming

  assert _INPUT.value is not None
  place = _INPUT.value.removeprefix("folder:")
  resize = _RESIZE.value or not Path(place).expanduser().is_dir()
  with config.unlocked():
    config.data.source = _INPUT.value
    config.data.holdout = 0.0
    config.data.strict = _STRICT.value or config.data.strict
    config.rows = (_METHOD.value,)
  _choose_model(config)
  _BUDGET.apply(config, row=_METHOD.value)
  run_config.check_values(config)
  # Whether anything is missing in a finished output of pictures is seen once they are read.
  extend = not resize and pictures.may_extend(_METHOD.value, output)
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


def _choose_model(config: Any) -> None:
  """Sets what --model says, if anything.

  Raises:
    ConfigError: no model is named and the method uses one.
  """
  from udp_jax import promises, protections
  from udp_jax.models import places

  method = _METHOD.value
  known = method in config.protections or method in protections.available()
  if known and not _MODEL.value and _CONFIG.value is None and promises.uses_model(config, method):
    raise ConfigError(
      f"{method} protects against a model: give --model=tiny_ldm (the small latent diffusion model "
      "of this package), --model=FOLDER (Stable Diffusion 1.x or 2.x, as diffusers writes it) or "
      f"--model={places.FRESH} (a small pixel DDPM trained on these pictures alone)"
    )
  with config.unlocked():
    if _MODEL.value == places.FRESH:
      config.model.path = ""
      if "architecture" in config.model:  # Else a folder is asked for.
        config.model.architecture = ""
    elif _MODEL.value:
      config.model.path = _MODEL.value


def _protect_full_size(
  config: Any, folder: Path, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects the pictures as they are; the manifest and the pictures' origin."""
  from udp_jax import picture_study, pictures
  from udp_jax.data import manifest, masks

  if _TILE_SIZE.value < 0:
    raise ConfigError(f"--tile_size is {_TILE_SIZE.value}: it must be positive, or 0")
  with config.unlocked():
    config.data.image_size = 0
  job = picture_study.open_job(
    config,
    folder,
    tile_size=_TILE_SIZE.value,
    overlap=_OVERLAP.value,
    files_at_a_time=_FILES.value,
    prompt=_PROMPT.value or config.data.get("prompt") or None,
  )
  mask_files = masks.find(_MASK.value, job.found.files) if _MASK.value else None
  digest = masks.sha256(mask_files) if mask_files else None
  if not _OVERWRITE.value:
    pictures.check_finished(config, _METHOD.value, job.found, output, job.tiling, workdir)
  # Before anything in the work folder may be cleared.
  copies = pictures.copies_of(job.found, output, workdir)
  if _OVERWRITE.value:
    manifest.check_output(output, overwrite=True, copies=copies)
  picture_study.check_workdir(
    config,
    workdir,
    job,
    replace=_OVERWRITE.value,
    apart=pictures.treats_apart(config, _METHOD.value),
    masks=digest,
  )
  made = pictures.protect(
    config,
    _METHOD.value,
    job.found,
    workdir,
    output,
    job.model,
    job.opened.params,
    job.tiling,
    mask_files=mask_files,
    cond_of=job.cond_of,
    texts=job.texts,
    overwrite=_OVERWRITE.value,
    copies=copies,
    progress=_PROGRESS.value,
  )
  return made, job.found.origin


def _protect_resized(
  config: Any, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects the pictures cropped and resized to the model's size; manifest and origin."""
  from udp_jax import run_config, study
  from udp_jax.data import manifest, originals
  from udp_jax.models import factory, pipeline

  given = {"--tile_size": _TILE_SIZE.value, "--mask": _MASK.value, "--prompt": _PROMPT.value}
  for flag, value in given.items():
    if value:
      raise ConfigError(f"{flag} is for pictures at full resolution, from a folder")
  if config.model.path and pipeline.is_pipeline(config.model.path):
    raise ConfigError("only models of pixels have pictures resized: give a folder, not --resize")
  model, _, params = factory.build(config.model, config.performance)
  study.build_protection(config, _METHOD.value, model, params)
  with config.unlocked():
    config.data.image_size = model.shape[0]
  clean = study.load_data(config)[0]

  def look() -> list[str]:
    sources, sets = originals.sources_of(clean), (clean.origin["sha256"],)
    copies = originals.copies(output, workdir, sources, sets)
    manifest.check_output(output, overwrite=_OVERWRITE.value, copies=copies)
    return sorted(copies)

  copies = processes.from_main(look, "look at the output")  # Before anything is cleared.
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
    copies=copies,
    progress=_PROGRESS.value,
  )
  return manifest.read_manifest(output) or {}, clean.origin


if __name__ == "__main__":
  _cli.run(main, resumable=True)
