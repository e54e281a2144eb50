"""Purifies a folder of pictures of any sizes with any method: folder in, folder out.

  python -m experiments.purify --input=PROTECTED --output=PURIFIED --method=jpeg --option=quality=60
  python -m experiments.purify --input=PROTECTED --output=PURIFIED --config=impress_glaze \\
    --model=FOLDER

Methods: the modules of udp_jax/purifiers. Files keep their names, transparency, colour profile,
EXIF and captions, as with `protect`; grey pictures stay grey. The same command goes on where a
killed one stopped, at the next batch of pictures.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_INPUT = flags.DEFINE_string("input", None, "Folder of pictures.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the purified pictures.")
_METHOD = flags.DEFINE_string("method", "", "A purifier, at its defaults; instead of --config.")
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


def main(argv: Sequence[str]) -> int:
  """Runs the flags' request."""
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
    named={"--model": _MODEL.value or config.model.path},
    outputs={"--output": _OUTPUT.value},
    work={"--workdir": _WORKDIR.value or places.work_beside(_OUTPUT.value)},
  ) as used:
    return _purify(config, used["--output"], used["--workdir"])


def _purify(config: Any, output: Path, workdir: Path) -> int:
  from udp_jax import parallel, purifying
  from udp_jax.data import manifest, naming, picture_folder

  assert _INPUT.value is not None
  with config.unlocked():
    config.model.path = _MODEL.value or config.model.path
    with config.options.ignore_type():  # One quality may become several.
      config.options.update(_parse_options(_OPTION.value))
  for field in ("per_device_batch_size", "steps_per_call"):
    if config[field] < 1:
      raise ConfigError(f"config.{field} is {config[field]}; it must be at least 1")
  # Whether anything is missing in a finished output is seen once the pictures are read.
  manifest.check_output(output, overwrite=_OVERWRITE.value, extend=True, inputs_follow=True)
  purifier, params = _build(config)
  place = Path(_INPUT.value.removeprefix("folder:")).expanduser()
  pictures = picture_folder.list_pictures(place, strict=_STRICT.value)
  made = purifying.purify_folder(
    purifier,
    params,
    pictures,
    output,
    workdir,
    settings={
      "method": config.method,
      "options": config.options.to_dict(),
      "model": config.model.path,
      "prompt": _PROMPT.value,
      "dtype": config.performance.dtype,
    },
    seed=config.seed,
    per_device_batch_size=config.per_device_batch_size,
    mesh=parallel.make_mesh(),
    steps_per_call=config.steps_per_call,
    strict=_STRICT.value,
    overwrite=_OVERWRITE.value,
    progress=_PROGRESS.value,
  )
  skipped = made["origin"]["skipped"]
  count = pictures.origin["count"] - len(skipped) + len(pictures.origin["skipped"])
  stayed = len(made["images"]) - count
  also = f", {stayed} more stay there whose pictures are not in the input" if stayed else ""
  print(f"{count} pictures purified by {config.method} in {output}{also}, {len(skipped)} skipped")
  for file, reason in skipped:
    print(naming.printable(f"skipped: {file}: {reason}"))
  return 0


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
  """{"quality": 60} of ["quality=60"]; what is no JSON is a word."""
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


def _build(config: Any) -> tuple[Any, Any]:
  """The purifier of a config and its parameters."""
  import jax

  from udp_jax import lookup, purifiers
  from udp_jax.models import factory

  options = config.options.to_dict()
  if not config.model.path:
    purifier = purifiers.build(config.method, None, options)
    return purifier, purifier.init(jax.random.key(config.seed))
  opened = factory.open_model(config.model, config.performance)
  accepted = inspect.signature(lookup.constructor("udp_jax.purifiers", config.method)).parameters
  embed = opened.model.embed
  if opened.pipeline is not None and opened.pipeline.tokenizer is not None and embed is not None:
    if "cond" in accepted:
      token_ids = opened.pipeline.tokenizer([_PROMPT.value])
      options["cond"] = jax.jit(embed)(opened.params, token_ids)
  elif _PROMPT.value:
    raise ConfigError("--prompt is for models with a text encoder; this one has none")
  purifier = purifiers.build(config.method, opened.model, options)
  return purifier, purifier.init(jax.random.key(config.seed), opened.params)


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
