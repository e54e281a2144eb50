"""Purifies a folder of pictures of any sizes with any method.

  python -m experiments.purify --input=PROTECTED --output=PURIFIED --method=jpeg --option=quality=60
  python -m experiments.purify --input=PROTECTED --output=PURIFIED --config=impress_glaze \\
    --model=FOLDER

Methods: the modules of udp_jax/purifiers. Files keep their names, transparency, colour profile,
EXIF and captions, as with `protect`; grey pictures stay grey. After a kill, the same command
continues at the next batch of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_INPUT = flags.DEFINE_string("input", None, "Folder of pictures.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the purified pictures.")
_METHOD = flags.DEFINE_string(
  "method", "", "A purifier with its default options, instead of --config."
)
_OPTION = flags.DEFINE_multi_string(
  "option", [], "NAME=VALUE of an option of the method, JSON or a word; may be repeated."
)
_MODEL = flags.DEFINE_string(
  "model", "", "Diffusers folder, or tiny_ldm, for methods that work with a diffusion model."
)
_PROMPT = flags.DEFINE_string("prompt", "", "For diffusion methods on models with text.")
_STRICT = flags.DEFINE_bool("strict", False, "An unusable picture is an error, not skipped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_CONFIG = _cli.define_config("purify")
_WORKDIR = _cli.workdir_flag()
_PARTS = _cli.model_flags()


def main(argv: Sequence[str]) -> int:
  """Purifies what the flags ask for; returns the exit code."""
  del argv
  if not _INPUT.value or not _OUTPUT.value:
    raise ConfigError("--input and --output are needed; see --help")
  if bool(_METHOD.value) == bool(_CONFIG.value):
    raise ConfigError("give one of --method and --config; see --help")
  from experiments.configs.purification import purification
  from udp_jax.data import places

  config = _CONFIG.value or purification(_METHOD.value)
  with places.use(
    pictures={"--input": _INPUT.value},
    named={"--model": _MODEL.value or config.model.path, "--vae": _PARTS.vae.value},
    outputs={"--output": _OUTPUT.value},
    work={"--workdir": _WORKDIR.value or places.work_beside(_OUTPUT.value)},
  ) as used:
    return _purify(config, used["--output"], used["--workdir"])


def _purify(config: Any, output: Path, workdir: Path) -> int:
  import jax

  from udp_jax.data import manifest, naming, picture_files
  from udp_jax.ops.keys import stream
  from udp_jax.runtime import mesh
  from udp_jax.stages import purify
  from udp_jax.stages.records import Run
  from udp_jax.studies import settings

  assert _INPUT.value is not None
  given = config.options.to_dict() | _parse_options(_OPTION.value)
  changes = {"model.path": _MODEL.value or config.model.path, "options": given}
  config = settings.frozen(config, changes | _PARTS.changes())
  for field in ("per_device_batch_size", "steps_per_call"):
    if config[field] < 1:
      raise ConfigError(f"config.{field} is {config[field]}; it must be at least 1")
  # Whether a finished output lacks anything is known only once the pictures are read.
  manifest.check_output(output, overwrite=_OVERWRITE.value, extend=True, inputs_follow=True)
  config = settings.frozen(config, settings.pinned(config))
  method = _prepare(config)
  place = Path(_INPUT.value.removeprefix("folder:")).expanduser()
  pictures = picture_files.list_pictures(place, strict=_STRICT.value)
  run = Run(
    mesh=mesh.make_mesh(),
    folder=workdir,
    key=stream(jax.random.key(config.seed), "purifier"),
    label="purify",
    sample_batch_size=config.per_device_batch_size,
    steps_per_call=config.steps_per_call,
    overwrite=_OVERWRITE.value,
    progress=_PROGRESS.value,
  )
  made = purify.purify(method, pictures, output, run, strict=_STRICT.value)
  skipped = made["origin"]["skipped"]
  count = pictures.origin["count"] - len(skipped) + len(pictures.origin["skipped"])
  stayed = len(made["images"]) - count
  also = f", {stayed} more stay there whose pictures are not in the input" if stayed else ""
  print(f"{count} pictures purified by {config.method} in {output}{also}, {len(skipped)} skipped")
  for file, reason in skipped:
    print(naming.printable(f"skipped: {file}: {reason}"))
  return 0


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
  """Parses ["quality=60"] to {"quality": 60}; a value that is not JSON is a string."""
  options = {}
  for word in words:
    name, equals, value = word.partition("=")
    if not equals or not name:
      raise ConfigError(f"--option={word}: expected NAME=VALUE")
    try:
      options[name] = json.loads(value)
    except ValueError:
      options[name] = value
  return options


def _prepare(config: Any) -> Any:
  """Returns the purifier of a config with its parameters, as a `purify.Prepared`."""
  import jax

  from udp_jax import purifiers, registry
  from udp_jax.models import factory, pipeline
  from udp_jax.models.context import Model
  from udp_jax.stages.purify import Prepared

  options = config.options.to_dict()
  record = {
    "method": config.method,
    "options": config.options.to_dict(),
    "model": config.model.path,
    **{name: value for name in pipeline.Choices._fields if (value := config.model[name])},
    "prompt": _PROMPT.value,
    "dtype": config.performance.dtype,
    "seed": config.seed,
  }
  model = Model(None)  # type: ignore[arg-type]  # Most purifiers work without one.
  if config.model.path:
    model = factory.open_model(config.model, config.performance)
    accepted = registry.fields(registry.constructor("udp_jax.purifiers", config.method))
    if model.tokenizer is not None and model.model.embed is not None:
      if "cond" in accepted:
        token_ids = model.tokenizer([_PROMPT.value])
        options["cond"] = jax.jit(model.model.embed)(model.params, token_ids)
    elif _PROMPT.value:
      raise ConfigError("--prompt is for models with a text encoder; this one has none")
  purifier = purifiers.build(config.method, model.model, options)
  params = purifier.init(jax.random.key(config.seed), model.params)
  return Prepared(purifier, params, record)


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
