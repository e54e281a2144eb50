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

FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("input", None, "Folder of pictures (or any data source).")
  flags.DEFINE_string("output", None, "Folder for the protected pictures.")
  flags.DEFINE_string(
    "method", "eudp", "A row of config.protections (eudp, udp, random_noise, ...) or any method."
  )
  flags.DEFINE_string(
    "model",
    "",
    "Model to protect against: tiny_ldm, a folder (Stable Diffusion 1.x, 2.x or XL, or a DDPM, as "
    "diffusers writes it), a .safetensors file (Stable Diffusion in one file), "
    "OWNER/NAME[@REVISION] (on the Hugging Face Hub), or pixel: a small DDPM trained on these "
    "pictures alone. Default: the config's; without --config, methods that use a model need this "
    "flag.",
  )
  cli.model_flags()
  flags.DEFINE_bool(
    "resize", False, "Centre-crop and resize to the model's size, instead of full resolution."
  )
  flags.DEFINE_integer(
    "tile_size", 0, "Side of a tile in pixels; 0 for the size that the model was made for."
  )
  flags.DEFINE_integer(
    "overlap",
    -1,
    "Pixels over which tiles blend; -1 for an eighth of a tile (more if a band needs it).",
  )
  flags.DEFINE_integer(
    "files_at_a_time", 0, "Pictures in memory together; 0 for the method's default, see above."
  )
  flags.DEFINE_string(
    "mask",
    "",
    "Protect only where this is white: one mask, or a folder of masks with the pictures' names.",
  )
  flags.DEFINE_string(
    "prompt",
    None,
    "For models with text: the caption of pictures that have none in their folder.",
  )
  flags.DEFINE_string(
    "clean_set",
    None,
    "Further pictures of the subject, which the surrogates of fsmg and aspl train on; default: the "
    "config's, or the pictures of --input as they are.",
  )
  flags.DEFINE_string(
    "band",
    None,
    "Keep the change to a band of frequencies: gaussian (smooth, so that a blur does not remove "
    "it), dct or pyramid; default: the config's, mostly none. For methods that optimise the "
    "change, and random_noise.",
  )
  flags.DEFINE_float(
    "band_sigma",
    None,
    "Standard deviation of --band=gaussian in pixels of a tile; default: the config's, mostly 3.",
  )
  flags.DEFINE_bool("strict", False, "An unusable picture is an error, not skipped.")
  flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
  flags.DEFINE_bool("progress", True, "Show progress bars.")
  flags.DEFINE_string(
    "strength",
    None,
    "The budget by name, instead of --radius_255: "
    + ", ".join(f"{name} ({levels:g})" for name, levels in budget.STRENGTHS.items())
    + ", or a number of 8-bit levels; the step is an eighth of it. Weaker is harder to see and "
    "easier to remove.",
  )
  cli.budget_flags()
  cli.define_config("eudp")
  cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Protects what the flags ask for; returns the exit code."""
  del argv
  if not FLAGS.input or not FLAGS.output:
    raise ConfigError("--input and --output are needed; see --help")
  from udp_jax.data import places

  config = FLAGS.config or cli.get_config("eudp", "folder")
  with places.use(
    pictures={
      "--input": FLAGS.input,
      "--mask": FLAGS.mask,
      "--clean_set": FLAGS.clean_set or config.data.get("clean_set") or None,
    },
    named={
      "--model": FLAGS.model or config.model.path,
      "--vae": FLAGS.vae,
      "config.model.timestep_probs": config.model.timestep_probs or None,
    },
    outputs={"--output": FLAGS.output},
    work={"--workdir": FLAGS.workdir or places.work_beside(FLAGS.output)},
    protects=True,
  ) as used:
    return _protect(config, used["--output"], used["--workdir"])


def _protect(config: Any, output: Path, workdir: Path) -> int:
  from udp_jax.data import manifest, naming
  from udp_jax.stages import protect_pictures
  from udp_jax.studies import settings

  assert FLAGS.input is not None
  place = FLAGS.input.removeprefix("folder:")
  resize = FLAGS.resize or not Path(place).expanduser().is_dir()
  changes: dict[str, Any] = {
    "data.source": FLAGS.input,
    "data.holdout": 0.0,
    "data.strict": FLAGS.strict or config.data.strict,
    "rows": (FLAGS.method,),
  }
  changes |= _clean_set_changes(config) | _band_changes()
  changes |= _model_changes(config) | cli.Budget.given().changes(
    config, row=FLAGS.method, named=FLAGS.strength
  )
  config = settings.frozen(config, changes | cli.ModelFlags.given().changes())
  settings.check_values(config)
  # Whether a finished output lacks anything is known only once its pictures are read.
  extend = not resize and protect_pictures.may_extend(FLAGS.method, output)
  processes.from_main(
    lambda: manifest.check_output(
      output, overwrite=FLAGS.overwrite, extend=extend, inputs_follow=True
    ),
    "look at the output",
  )
  config = settings.frozen(config, settings.pinned(config))
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


def _clean_set_changes(config: Any) -> dict[str, Any]:
  """Returns the config value that --clean_set sets, if it is given.

  Raises:
    ConfigError: the method trains on no clean set, or the set is what is protected.
  """
  from udp_jax import registry
  from udp_jax.data import places

  if not FLAGS.clean_set:
    return {}
  method = config.protections.get(FLAGS.method, {}).get("method", FLAGS.method)
  if "clean_set" not in registry.fields(registry.constructor("udp_jax.protections", method)):
    raise ConfigError(f"--clean_set is for fsmg and aspl: {method} trains on no clean set")
  given, source = (v.removeprefix("folder:") for v in (FLAGS.clean_set, FLAGS.input or ""))
  if places.resolve(given) == places.resolve(source):
    raise ConfigError("--clean_set is the same folder as --input: give pictures apart from those")
  return {"data.clean_set": FLAGS.clean_set}


def _band_changes() -> dict[str, Any]:
  """Returns the config values that --band and --band_sigma set, if they are given."""
  given = {"band": FLAGS.band, "band_sigma": FLAGS.band_sigma}
  row = f"protections.{FLAGS.method}"
  return {f"{row}.{name}": value for name, value in given.items() if value is not None}


def _model_changes(config: Any) -> dict[str, Any]:
  """Returns the config values that --model sets, if any.

  Raises:
    ConfigError: no model is named, but the method uses one.
  """
  from udp_jax import protections
  from udp_jax.models import places
  from udp_jax.studies import rows

  method = FLAGS.method
  known = method in config.protections or method in protections.available()
  if known and not FLAGS.model and FLAGS.config is None and rows.uses_model(config, method):
    raise ConfigError(
      f"{method} protects against a model: give --model=tiny_ldm (the small latent diffusion model "
      "of this package), --model=MODEL (Stable Diffusion 1.x, 2.x or XL: a folder, a .safetensors "
      f"file, or OWNER/NAME on the Hugging Face Hub) or --model={places.FRESH} (a small pixel DDPM "
      "trained on these pictures alone)"
    )
  if FLAGS.model == places.FRESH:
    fresh = {"model.path": ""}
    # Without this, the run would ask for a folder.
    return fresh | ({"model.architecture": ""} if "architecture" in config.model else {})
  return {"model.path": FLAGS.model} if FLAGS.model else {}


def _protect_full_size(
  config: Any, folder: Path, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects pictures at full resolution; returns the manifest and the pictures' origin."""
  from udp_jax.studies import pictures

  if FLAGS.tile_size < 0:
    raise ConfigError(f"--tile_size is {FLAGS.tile_size}: it must be positive, or 0")
  asked = pictures.Asked(
    FLAGS.method,
    folder,
    output,
    workdir,
    pictures.Cutting(FLAGS.tile_size, FLAGS.overlap, FLAGS.files_at_a_time),
    mask=FLAGS.mask,
    prompt=FLAGS.prompt or config.data.get("prompt") or None,
    overwrite=FLAGS.overwrite,
    progress=FLAGS.progress,
  )
  return pictures.protect_folder(config, asked)


def _protect_resized(
  config: Any, output: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects pictures resized to the model's size; returns the manifest and their origin."""
  from udp_jax.data import manifest, originals
  from udp_jax.models import pipeline
  from udp_jax.studies import build, settings

  given = {"--tile_size": FLAGS.tile_size, "--mask": FLAGS.mask, "--prompt": FLAGS.prompt}
  for flag, value in given.items():
    if value:
      raise ConfigError(f"{flag} is for pictures at full resolution, from a folder")
  if config.model.path and pipeline.is_pipeline(config.model.path):
    raise ConfigError("only models of pixels have pictures resized: give a folder, not --resize")
  study = build.open_study(config, workdir, progress=FLAGS.progress)
  build.build_protection(config, FLAGS.method, study.model)
  size = study.model.model.shape[0]
  study = study._replace(config=settings.frozen(config, {"data.image_size": size}))
  clean = build.load_data(study.config)[0]

  def look() -> list[str]:
    sources, sets = originals.sources_of(clean), (clean.origin["sha256"],)
    copies = originals.copies(output, workdir, sources, sets)
    manifest.check_output(output, overwrite=FLAGS.overwrite, copies=copies)
    return sorted(copies)

  copies = processes.from_main(look, "look at the output")  # Before anything is cleared.
  settings.check(study.config, workdir, clean, replace=FLAGS.overwrite)
  build.write_pictures(clean, workdir / "clean")
  build.protect_row(
    study, FLAGS.method, clean, folder=output, overwrite=FLAGS.overwrite, copies=copies
  )
  return manifest.read_manifest(output) or {}, clean.origin


def start(call: cli.Call | None = None) -> None:
  """Defines the flags and runs `main`, as `udp-jax` calls it or as a main of `experiments`."""
  define()
  cli.run(main, resumable=True, call=call)
