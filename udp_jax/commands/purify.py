"""Purifies a folder of pictures: the main of `udp-jax purify` and `experiments.purify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from udp_jax.commands import cli
from udp_jax.errors import ConfigError

FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("input", None, "Folder of pictures.")
  flags.DEFINE_string("output", None, "Folder for the purified pictures.")
  flags.DEFINE_string("method", "", "A purifier with its default options, instead of --config.")
  flags.DEFINE_multi_string(
    "option", [], "NAME=VALUE of an option of the method, JSON or a word; may be repeated."
  )
  flags.DEFINE_string(
    "model", "", "Diffusers folder, or tiny_ldm, for methods that work with a diffusion model."
  )
  flags.DEFINE_string(
    "purifier_model",
    "",
    "Folder of the prior of diffpure, freqpure and gridpure, instead of --model: a DDPM or an ADM "
    "for pixels.",
  )
  cli.model_flags()
  flags.DEFINE_string("prompt", "", "For diffusion methods on models with text.")
  flags.DEFINE_bool("strict", False, "An unusable picture is an error, not skipped.")
  flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
  flags.DEFINE_bool("progress", True, "Show progress bars.")
  cli.define_config("purify")
  cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Purifies what the flags ask for; returns the exit code."""
  del argv
  if not FLAGS.input or not FLAGS.output:
    raise ConfigError("--input and --output are needed; see --help")
  if bool(FLAGS.method) == bool(FLAGS.config):
    raise ConfigError("give one of --method and --config; see --help")
  from udp_jax.data import places
  from udp_jax.studies.configs.purification import purification

  config = FLAGS.config or purification(FLAGS.method)
  with places.use(
    pictures={"--input": FLAGS.input},
    named={
      "--model": FLAGS.model or config.model.path,
      "--vae": FLAGS.vae,
      "--purifier_model": FLAGS.purifier_model or config.purifier_model.path,
    },
    outputs={"--output": FLAGS.output},
    work={"--workdir": FLAGS.workdir or places.work_beside(FLAGS.output)},
  ) as used:
    return _purify(config, used["--output"], used["--workdir"])


def _purify(config: Any, output: Path, workdir: Path) -> int:
  from udp_jax.data import naming
  from udp_jax.studies import purifying, settings

  assert FLAGS.input is not None
  changes = {"model.path": FLAGS.model or config.model.path}
  changes["purifier_model.path"] = FLAGS.purifier_model or config.purifier_model.path
  config = settings.frozen(config, changes | cli.ModelFlags.given().changes())
  asked = purifying.Asked(
    Path(FLAGS.input.removeprefix("folder:")).expanduser(),
    output,
    workdir,
    options=_parse_options(FLAGS.option),
    prompt=FLAGS.prompt,
    strict=FLAGS.strict,
    overwrite=FLAGS.overwrite,
    progress=FLAGS.progress,
  )
  made, pictures = purifying.purify_folder(config, asked)
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


def start(call: cli.Call | None = None) -> None:
  """Defines the flags and runs `main`, as `udp-jax` calls it or as a main of `experiments`."""
  define()
  cli.run(main, resumable=True, several=False, call=call)
