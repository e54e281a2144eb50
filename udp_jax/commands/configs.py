"""Named configs: --config=NAME[:VARIANT], and --config.FIELD=VALUE, which changes a field."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from udp_jax.errors import ConfigError

VARIANTS = ("smoke",)
# Packages with a package of configs an experiment; `experiments` adds its own.
CONFIGS = ["udp_jax.studies.configs"]
# The experiment whose configs --config accepts; empty if an entry point has no configs.
EXPERIMENT: list[str] = []
# Config fields that have a flag of another name.
_FIELD_FLAGS = {"model.path": "model", "data.source": "input", "data.prompt": "prompt"}


def config_modules(experiment: str) -> dict[str, str]:
  """Returns the modules of an experiment's configs by name, in the order of their names."""
  found: dict[str, str] = {}
  for place in CONFIGS:
    package = f"{place}.{experiment}"
    if importlib.util.find_spec(package) is not None:
      path = importlib.import_module(package).__path__
      found |= {module.name: f"{package}.{module.name}" for module in pkgutil.iter_modules(path)}
  return dict(sorted(found.items()))


def config_names(experiment: str) -> list[str]:
  """Returns the names of an experiment's configs."""
  return [*config_modules(experiment)]


def get_config(experiment: str, name: str) -> Any:
  """Returns the config NAME[:VARIANT] of an experiment.

  Raises:
    ConfigError: there is no such config or variant.
  """
  name, _, variant = name.partition(":")
  modules = config_modules(experiment)
  if name not in modules:
    raise ConfigError(f"unknown config {name!r} of {experiment}; known: {', '.join(modules)}")
  if variant and variant not in VARIANTS:
    raise ConfigError(f"unknown variant {variant!r} of config {name}; known: {', '.join(VARIANTS)}")
  module = importlib.import_module(modules[name])
  return module.get_config(variant or None)


def describe_configs(experiment: str) -> str:
  """Returns one line per config: the first line of its docstring."""
  lines = []
  for name, module in config_modules(experiment).items():
    text = importlib.import_module(module).__doc__ or ""
    lines.append(f"  {name:14} {text.strip().splitlines()[0]}")
  return "\n".join(lines)


class _NamedConfig(flags.ArgumentParser):
  """Parses the NAME[:VARIANT] of a config, not the path of a file."""

  def parse(self, name: str) -> Any:
    """Returns the config, locked. Raises ConfigError if there is none."""
    return get_config(EXPERIMENT[0], name).lock()


def define_config(experiment: str) -> Any:
  """Defines --config=NAME[:VARIANT] and --config.field=value; returns the flag's holder."""
  EXPERIMENT[:] = [experiment]
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "NAME or NAME:VARIANT of a config, see above. --config.FIELD=VALUE changes a field of it.",
    flags.FLAGS,
    lock_config=True,
  )
  flags.FLAGS["config"].parser = _NamedConfig()
  return holder


def resolve(argv: Sequence[str]) -> list[str]:
  """Puts --config=NAME first, as ml_collections requires, and checks the names of fields.

  Raises:
    ConfigError: there is no such config, variant or field.
  """
  experiment = EXPERIMENT[0]
  name = None
  rest: list[str] = []
  words = list(argv[1:])
  while words:
    word = words.pop(0)
    flag, equals, value = word.partition("=")
    if flag.lstrip("-") != "config" or not word.startswith("-"):
      rest.append(word)
    elif equals:
      name = value
    elif words:
      name = words.pop(0)
    else:
      raise ConfigError("--config needs a name; see --help for the list")
  if name is None:
    if fields := [word for word in rest if word.startswith(("--config.", "-config."))]:
      raise ConfigError(
        f"{fields[0]} needs --config=NAME{_or_flag(fields[0])}; see --help for the list"
      )
    return [*argv[:1], *rest]
  config = get_config(experiment, name)
  for word in rest:
    if word.startswith(("--config.", "-config.")):
      _check_field(config, word.partition("=")[0].partition(".")[2])
  return [*argv[:1], f"--config={name}", *rest]


def _or_flag(word: str) -> str:
  """Suggests the flag that does the same as --config.FIELD=VALUE, for a call without a config."""
  field, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
  name = _FIELD_FLAGS.get(field, field)
  return f", or without a config --{name}{equals}{value}" if name in flags.FLAGS else ""


def _check_field(config: Any, field: str) -> None:
  """Raises ConfigError unless `field` ("data.limit") is in `config`."""
  place = "config"
  for part in field.split("."):
    if not hasattr(config, "keys"):
      raise ConfigError(f"unknown field config.{field}: {place} is a value")
    if part not in config:
      raise ConfigError(
        f"unknown field config.{field}; fields of {place}: {', '.join(sorted(config.keys()))}"
      )
    config, place = config[part], f"{place}.{part}"
  if hasattr(config, "keys"):
    raise ConfigError(f"{place} is a group of fields: {', '.join(sorted(config.keys()))}")
