"""Code shared by all commands: --config=NAME[:VARIANT], process start, errors and exit codes.

`udp-jax` and every main of `experiments` start through `run`; it has to be imported first.

Exit codes: 0 done, or stopped by SIGTERM with everything saved; 1 a bug (or, for `verify`, a broken
budget); 2 bad arguments, config, or missing data or weights; 3 unusable data; 4 unusable output
path; 5 a loss that is not finite; 6 another process of the run died, failed or never appeared; 7 a
matrix whose report is written but with failed cells (`impress`); 130 stopped by Ctrl-C, with
everything saved; 143 SIGTERM where there is nothing to resume (`sample`, `evaluate`, `verify`).
"""

from __future__ import annotations

import contextlib
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import app, flags

from udp_jax.commands import startup
from udp_jax.commands.configs import (
  CONFIGS,
  EXPERIMENT,
  VARIANTS,
  config_modules,
  config_names,
  define_config,
  describe_configs,
  get_config,
  resolve,
)
from udp_jax.commands.shared_flags import (
  Budget,
  ModelFlags,
  budget_flags,
  deterministic_flag,
  model_flags,
  process_flags,
  workdir_flag,
)
from udp_jax.data import naming
from udp_jax.errors import ConfigError, Preempted, UserError
from udp_jax.runtime import processes

# The mains take all they need from here.
__all__ = [
  "CONFIGS",
  "HELP",
  "VARIANTS",
  "Budget",
  "Call",
  "ModelFlags",
  "budget_flags",
  "command",
  "config_modules",
  "config_names",
  "define_config",
  "describe_configs",
  "get_config",
  "model_flags",
  "run",
  "workdir_flag",
]

# Before the other imports, which take seconds and would otherwise run twice.
startup.prepare()

HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "--helpfull", "-helpfull")


class Call(NamedTuple):
  """How a command is called by `udp-jax`, without --input and --output.

  Attributes:
    words: the command line after the command's name.
    about: first paragraphs of its --help.
    places: flags that words without a flag fill, in this order.
    first: flags that --help lists; --helpfull lists all.
    complete: fills flags that were not given.
  """

  words: Sequence[str]
  about: str
  places: Sequence[str] = ()
  first: Sequence[str] = ()
  complete: Callable[[], None] = lambda: None


# The command that `udp-jax` was asked for; empty in the mains of `experiments`.
_CALL: list[Call] = []


def command(name: str) -> str:
  """How the user starts another command: "udp-jax verify", or "python -m experiments.verify"."""
  return f"{startup.SCRIPT} {name}" if _CALL else f"python -m experiments.{name}"


def run(
  main: Callable[[Sequence[str]], int | None],
  *,
  resumable: bool = False,
  several: bool = True,
  call: Call | None = None,
) -> None:
  """Parses flags, starts the process, runs `main` and maps exceptions to exit codes.

  Args:
    main: called with the name of the program; other words than flags are refused.
    resumable: whether the same command continues a stopped run.
    several: whether several processes may run `main` together.
    call: how `udp-jax` was called; None for a main of `experiments`.
  """
  _CALL[:] = [] if call is None else [call]
  words = sys.argv[1:] if call is None else call.words
  if several:
    process_flags()
  deterministic_flag()
  asked = [word for word in words if word in HELP]
  if asked:
    print(_help(full="helpfull" in asked[0]))
    sys.exit(0)

  def guarded(argv: Sequence[str]) -> int:
    try:
      if call is not None:
        argv = _fill_places(argv, call)
      if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r} (flags start with --; see --help)")
      startup.start_process(resumable=resumable)
      if flags.FLAGS.deterministic:
        startup.repeat_exactly(flags.FLAGS.workdir if "workdir" in flags.FLAGS else None)
      if several:
        startup.join_processes(resumable)
      code = main(argv) or 0
      processes.finish()
      return code
    except Preempted as stop:
      processes.finish()  # All processes have agreed to stop here.
      with contextlib.suppress(OSError):  # The reader of stdout may be gone.
        print(stop, file=sys.stderr, flush=True)
      # Everything is on disk. Exit at once: compiler threads may still be running and could crash
      # while the interpreter shuts down.
      processes.exit_now(0 if stop.signal == signal.SIGTERM else 128 + stop.signal)
    except UserError as error:
      code = _report(error)
      if processes.count() > 1:
        _end_alone(code, str(error))
      return code
    except Exception as error:
      if processes.count() == 1:
        raise
      if processes.was_caused_by_another(error):
        processes.wait_for_the_end()
      traceback.print_exc()
      _end_alone(1, f"{type(error).__name__}: {error}")
      raise

  app.run(guarded, argv=[sys.argv[0], *words], flags_parser=_parse)


def _fill_places(argv: Sequence[str], call: Call) -> list[str]:
  """Gives words without a flag to the flags that they stand for; returns what is left."""
  for name, word in zip(call.places, argv[1:]):
    if flags.FLAGS[name].present:
      raise ConfigError(f"{word!r} stands for --{name}, which is given too")
    flags.FLAGS[name].value = word
  call.complete()
  return [*argv[:1], *argv[1 + len(call.places) :]]


def _end_alone(code: int, text: str) -> None:
  """Ends this process and thereby the others, which would otherwise wait for it."""
  processes.leave(code, text)
  processes.exit_now(code)


def _parse(argv: Sequence[str]) -> list[str]:
  given = sys.argv
  try:
    # ml_collections looks for overrides in sys.argv; reports quote the command as given.
    sys.argv = resolve(argv) if EXPERIMENT else list(argv)
    return flags.FLAGS(sys.argv)
  except UserError as error:
    sys.exit(_report(error))
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
    # absl and ml_collections raise these for an unknown flag or a value of the wrong type.
    sys.exit(_report(ConfigError(f"{' '.join(str(error).split())} (see --help)")))
  finally:
    sys.argv = given


def _report(error: UserError) -> int:
  text = naming.printable(" ".join(str(error).split()))
  print(f"error: {text}", file=sys.stderr, flush=True)
  return error.exit_code


def _help(*, full: bool) -> str:
  """Describes the entry point, its configs and flags; with `full`, also the flags of libraries."""
  if _CALL and not full:
    return _help_of_call(_CALL[0])
  parts = [_CALL[0].about if _CALL else (sys.modules["__main__"].__doc__ or "").strip()]
  if EXPERIMENT:
    parts.append("configs (--config=NAME, or --config=NAME:smoke for a run of seconds):")
    parts[-1] += f"\n{describe_configs(EXPERIMENT[0])}"
  own = [
    flag
    for module, found in flags.FLAGS.flags_by_module_dict().items()
    if module == sys.argv[0] or module.startswith(startup.OURS)
    for flag in found
  ]
  lines = [_line(flag) for flag in sorted(own, key=lambda flag: flag.name)]
  parts.append("\n".join(["flags:", *lines, f"  {'--help, --helpfull':24} This, or all flags."]))
  if full:
    parts.append(flags.FLAGS.get_help())
  return "\n\n".join(parts)


def _line(flag: Any) -> str:
  default = "" if flag.default in (None, "") else f" Default: {flag.default_as_str}."
  name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
  return f"  {name:24} {' '.join((flag.help or '').split())}{default}"


def _help_of_call(call: Call) -> str:
  """Describes a command of `udp-jax` and the flags that people need first."""
  lines = []
  for name in call.first:
    lines += textwrap.wrap(_line(flags.FLAGS[name]), 98, subsequent_indent=" " * 27)
  return "\n".join([call.about, "", "flags:", *lines, "  --helpfull               all flags"])
