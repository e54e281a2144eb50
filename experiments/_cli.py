"""What every entry point shares: --config=NAME[:VARIANT], process start, errors and exit codes.

Exit codes: 0 done, or stopped on request with everything saved; 1 a bug (or, for `verify`, a broken
budget); 2 bad arguments, config, or missing data or weights; 3 unusable data; 4 unusable output
place; 5 a loss that is not finite.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from udp_jax.errors import ConfigError, UserError

_CPU_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"
VARIANTS = ("smoke",)


def config_names(experiment: str) -> list[str]:
  """Names of the configs in experiments/configs/<experiment>."""
  package = importlib.import_module(f"experiments.configs.{experiment}")
  return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def describe_configs(experiment: str) -> str:
  """One line a config, from the first line of its docstring."""
  lines = []
  for name in config_names(experiment):
    module = importlib.import_module(f"experiments.configs.{experiment}.{name}")
    lines.append(f"  {name:14} {(module.__doc__ or '').strip().splitlines()[0]}")
  return "\n".join(lines)


def define_config(experiment: str) -> Any:
  """Defines --config=NAME[:VARIANT] and --config.field=value; returns the flag's holder."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    f"NAME[:VARIANT] of a config of `{experiment}`; fields: --config.field=value.",
    lock_config=True,
  )
  main_module = sys.modules["__main__"]
  main_module.__doc__ = (
    f"{main_module.__doc__ or ''}\nConfigs (--config=NAME, or NAME:smoke for a run of seconds):\n"
    f"{describe_configs(experiment)}\n"
  )
  _EXPERIMENT.append(experiment)
  return holder


_EXPERIMENT: list[str] = []


def _resolve(argv: Sequence[str]) -> list[str]:
  """Turns --config=NAME[:VARIANT] into the path that ml_collections wants.

  Raises:
    ConfigError: no such config or variant.
  """
  resolved = []
  expected = False
  for word in argv:
    name = word
    prefix = ""
    if word in ("--config", "-config"):
      expected = True
      resolved.append(word)
      continue
    if word.startswith(("--config=", "-config=")):
      prefix, name = word.split("=", 1)
      prefix += "="
    elif not expected:
      resolved.append(word)
      continue
    expected = False
    resolved.append(prefix + _config_path(name))
  return resolved


def _config_path(name: str) -> str:
  name, _, variant = name.partition(":")
  experiment = _EXPERIMENT[-1]
  names = config_names(experiment)
  if name not in names:
    raise ConfigError(f"unknown config {name!r} of {experiment}; known: {', '.join(names)}")
  if variant and variant not in VARIANTS:
    raise ConfigError(f"unknown variant {variant!r} of config {name}; known: {', '.join(VARIANTS)}")
  path = Path(__file__).parent / "configs" / experiment / f"{name}.py"
  return f"{path}:{variant}" if variant else str(path)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(_resolve(argv) if _EXPERIMENT else list(argv))
  except UserError as error:
    _fail(error)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    # What ml_collections raises for an unknown field or a value of the wrong type.
    text = " ".join(str(error).split())
    _fail(ConfigError(f"{text} (see --help)"))
  raise AssertionError("unreachable")


def _fail(error: UserError) -> None:
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(error.exit_code)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """Parses flags, starts the process, runs `main` and turns what it raises into an exit code."""
  argv = sys.argv
  if any(word in ("--help", "-h", "-help") for word in argv[1:]):
    print(sys.modules["__main__"].__doc__)
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  app.run(_guarded(main), argv=argv, flags_parser=_parse)


def _guarded(main: Callable[[Sequence[str]], int | None]) -> Callable[[Sequence[str]], int]:
  def guarded(argv: Sequence[str]) -> int:
    if len(argv) > 1:
      _fail(ConfigError(f"unexpected argument {argv[1]!r} (flags start with --; see --help)"))
    start_process()
    from udp_jax.loop import Preempted  # After the process start, because it imports jax.

    try:
      return main(argv) or 0
    except Preempted as stop:
      print(stop, file=sys.stderr, flush=True)
      return 0
    except UserError as error:
      _fail(error)
    raise AssertionError("unreachable")

  return guarded


def start_process() -> None:
  """Logging, compiler flags and the persistent compilation cache, before jax is used."""
  logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
  logging.getLogger("udp_jax").setLevel(logging.INFO)
  # Orbax reports every step of every save through absl.
  absl_logging.set_verbosity(absl_logging.WARNING)
  # XLA's CPU backend sends convolutions and products to a slower library by default (jaxlib 0.10).
  given = os.environ.get("XLA_FLAGS", "")
  if "ynn_fusion_type" not in given:
    os.environ["XLA_FLAGS"] = f"{given} {_CPU_FLAGS}".strip()
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "udp_jax" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def workdir_flag(default: str | None = None) -> flags.FlagHolder:
  """Defines --workdir."""
  return flags.DEFINE_string(
    "workdir", default, "Folder of this run: checkpoints, results; a second call goes on there."
  )
