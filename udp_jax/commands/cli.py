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
import gc
import importlib.util
import io
import logging
import os
import pkgutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from udp_jax.data import naming
from udp_jax.errors import ConfigError, Preempted, UserError
from udp_jax.runtime import locks, processes

# The console script, and the packages whose modules are mains or define flags.
SCRIPT = "udp-jax"
_OURS = ("experiments.", "udp_jax.commands.")
_TUNABLES = "glibc.malloc.hugetlb=1"
_TPU_FLAGS = (
  "--xla_tpu_run_space_to_batch=false",
  "--xla_tpu_run_space_to_batch_on_new_platforms=false",
)
_CPU_FLAGS = ("--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",)
_AUTOTUNE = "autotune"


def _ask_for_huge_pages() -> None:
  """Restarts this program with an allocator that asks the kernel for huge pages.

  XLA's CPU backend allocates its scratch memory anew for every call; page faults of 4 KiB each cost
  a quarter of a U-Net's step. glibc reads the setting only at the start of a process. A
  GLIBC_TUNABLES that is already set is kept.
  """
  first, second, *_ = [*sys.orig_argv[1:3], "", ""]
  ours = second.startswith(_OURS) if first == "-m" else Path(first).name == SCRIPT
  glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
  if ours and glibc and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = _TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_small_batches_whole() -> None:
  """Tells the TPU compiler not to convert the feature maps of small batches into larger batches.

  It would enlarge the batch of a convolution by cutting its map into strips with margins, in every
  layer. For the VAE of Stable Diffusion at 512x512, four pictures per chip (v5e), that moves 155 GB
  per gradient instead of 27, and takes 3.7 times the cycles by the compiler's own estimate. A flag
  that is already set in LIBTPU_INIT_ARGS is kept; without a TPU nothing reads it.
  """
  given = os.environ.get("LIBTPU_INIT_ARGS", "")
  if "run_space_to_batch" not in given:
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*given.split(), *_TPU_FLAGS])


def _schedule_for_memory() -> None:
  """Tells XLA's CPU compiler to order operations by memory use, not by when they could start.

  By default it computes everything early that needs no gradient: a bfloat16 round of the CIFAR-10
  model then takes 1,520 MiB of scratch memory instead of 1,140, and no less time. A setting that is
  already in XLA_FLAGS is kept; other devices do not read it.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_scheduler_type" not in given:
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *_CPU_FLAGS])


def _collect_less_often() -> None:
  """Makes Python's garbage collector examine young objects less often.

  By default it does so every 700 allocations. Tracing a model makes millions of objects, and hardly
  any of them are garbage.
  """
  gc.set_threshold(20_000, 20, 50)


# Before the other imports, which take seconds and would otherwise run twice.
_ask_for_huge_pages()
_collect_less_often()
_keep_small_batches_whole()
_schedule_for_memory()

VARIANTS = ("smoke",)
# Packages with a package of configs an experiment; `experiments` adds its own.
CONFIGS = ["udp_jax.studies.configs"]
# Config fields that have a flag of another name.
_FIELD_FLAGS = {"model.path": "model", "data.source": "input", "data.prompt": "prompt"}
HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "--helpfull", "-helpfull")
# The experiment whose configs --config accepts; empty if an entry point has no configs.
_EXPERIMENT: list[str] = []


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
    return get_config(_EXPERIMENT[0], name).lock()


def define_config(experiment: str) -> Any:
  """Defines --config=NAME[:VARIANT] and --config.field=value; returns the flag's holder."""
  _EXPERIMENT[:] = [experiment]
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "NAME or NAME:VARIANT of a config, see above. --config.FIELD=VALUE changes a field of it.",
    flags.FLAGS,
    lock_config=True,
  )
  flags.FLAGS["config"].parser = _NamedConfig()
  return holder


def workdir_flag() -> flags.FlagHolder:
  """Defines --workdir."""
  return flags.DEFINE_string(
    "workdir", None, "Folder of this run, for checkpoints and results; a second call continues it."
  )


class Budget(NamedTuple):
  """The budget flags of all entry points that protect; None for a flag that is not given."""

  radius_255: flags.FlagHolder | flags.Flag
  step_size_255: flags.FlagHolder | flags.Flag
  spare_flat: flags.FlagHolder | flags.Flag

  @classmethod
  def given(cls) -> Budget:
    """Returns the flags after `budget_flags` has defined them."""
    return cls(*(flags.FLAGS[name] for name in cls._fields))

  def changes(
    self, config: Any, *, row: str | None = None, named: str | None = None
  ) -> dict[str, Any]:
    """Returns the config values that the flags set, by dotted name, for `studies.settings.frozen`.

    Args:
      config: settings of a study or a matrix.
      row: name of the only protected row; the flags also replace its own radius and step. Without
        it, rows that set their own radius or step keep them.
      named: value of --strength, which sets the radius and by default the step.

    Raises:
      ConfigError: a value cannot be used.
    """
    from udp_jax.data import budget

    radius_255, step_size_255, spare_flat = (flag.value for flag in self)
    if named is not None:
      if radius_255 is not None:
        raise ConfigError("give --strength or --radius_255, not both")
      radius_255 = budget.levels("--strength", named)
      step_size_255 = budget.step(radius_255) if step_size_255 is None else step_size_255
    if radius_255 is not None:
      budget.check_radius_255("--radius_255", radius_255)
    if step_size_255 is not None and not 0 < step_size_255 <= 255:
      raise ConfigError(
        f"--step_size_255 is {step_size_255}: it must be above 0 and at most 255, in 8-bit levels"
      )
    if spare_flat is not None and not 0 <= spare_flat <= 1:
      raise ConfigError(f"--spare_flat is {spare_flat}: it must be from 0 (off) to 1")
    found: dict[str, Any] = {}
    for name, value in (("radius_255", radius_255), ("step_size_255", step_size_255)):
      if value is None:
        continue
      found[name] = float(value)
      own, seen = row, set()
      while own and own not in seen:  # A row that imitates another row has that row's budget.
        seen.add(own)
        settings = config.protections.get(own, {})
        if name in settings:
          found[f"protections.{own}.{name}"] = float(value)
        own = settings.get("of")
    if spare_flat is not None:
      found["spare_flat"] = float(spare_flat)
    return found


def budget_flags() -> Budget:
  """Defines --radius_255, --step_size_255 and --spare_flat, which `Budget.changes` reads."""
  return Budget(
    flags.DEFINE_float(
      "radius_255",
      None,
      "Budget: the largest change of any value of a saved file, in 8-bit levels, 1 to 255; "
      "default: the config's. Rows of a config that name their own radius keep it, unless one row "
      "is all that is protected.",
    ),
    flags.DEFINE_float(
      "step_size_255",
      None,
      "Length of a step in 8-bit levels; default and rows as for --radius_255.",
    ),
    flags.DEFINE_float(
      "spare_flat",
      None,
      "Spends less of the budget where a change is visible: STRENGTH from 0 (off) to 1. Perfectly "
      "flat areas get 1 - STRENGTH of the radius, lively ones all of it. The protection is weaker "
      "there.",
    ),
  )


class ModelFlags(NamedTuple):
  """The flags that take something in place of a model's own; None for a flag that is not given."""

  vae: flags.FlagHolder | flags.Flag
  tokenizer: flags.FlagHolder | flags.Flag
  prediction_type: flags.FlagHolder | flags.Flag

  @classmethod
  def given(cls) -> ModelFlags:
    """Returns the flags after `model_flags` has defined them."""
    return cls(*(flags.FLAGS[name] for name in cls._fields))

  def changes(self) -> dict[str, str]:
    """Returns the config values that the flags set, by dotted name, for `settings.frozen`."""
    values = {f"model.{name}": flag.value for name, flag in zip(self._fields, self)}
    return {name: value for name, value in values.items() if value is not None}


def model_flags() -> ModelFlags:
  """Defines --vae, --tokenizer and --prediction_type, fields of `models.pipeline.Choices`."""
  return ModelFlags(
    flags.DEFINE_string(
      "vae", None, "VAE in place of the model's own: a .safetensors file, a folder, or OWNER/NAME."
    ),
    flags.DEFINE_string(
      "tokenizer", None, "Folder of CLIP's vocabulary, for a --model of one .safetensors file."
    ),
    flags.DEFINE_enum(
      "prediction_type",
      None,
      ["epsilon", "v_prediction"],
      "What the model predicts, where its files do not say (one file of Stable Diffusion 2.x).",
    ),
  )


def _define_process_flags() -> None:
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where the run has several processes."
  )
  flags.DEFINE_integer(
    "num_processes", None, "Number of processes; found on SLURM and Cloud TPU pods."
  )
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
  flags.DEFINE_float(
    "peer_timeout_s", 60.0, "Seconds of silence after which another process counts as lost."
  )


def _define_deterministic() -> None:
  flags.DEFINE_bool(
    "deterministic",
    False,
    "On NVIDIA GPUs: repeats a run bit for bit on the same kind of card, with the same driver and "
    "library versions. Leaves out kernels that add in a random order, and keeps XLA's choices of "
    "kernels, which it makes by timing them, in WORKDIR/autotune (without --workdir beside the "
    "compilation cache); copy that folder to repeat the run elsewhere. Every work folder compiles "
    "anew. XLA_FLAGS=--xla_gpu_deterministic_ops=true instead is slower: nothing is timed. CPUs "
    "and TPUs need neither. Not yet verified on a GPU.",
  )


def _repeat_exactly(workdir: str | None) -> None:
  """Sets what --deterministic asks of XLA's GPU compiler. Settings that are already there stay."""
  folder = Path(workdir or os.environ["JAX_COMPILATION_CACHE_DIR"]).expanduser().absolute()
  place = str(folder / _AUTOTUNE)
  quote = '"' if len(place.split()) > 1 else ""
  wanted = (
    "--xla_gpu_exclude_nondeterministic_ops=true",
    f"--xla_gpu_per_fusion_autotune_cache_dir={quote}{place}{quote}",
  )
  given = os.environ.get("XLA_FLAGS", "")
  missing = [flag for flag in wanted if flag.partition("=")[0] not in given]
  os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
  # By default jax moves the choices into its own cache, whatever XLA_FLAGS says.
  os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def _join_processes(resumable: bool) -> None:
  """Joins the other processes of the run, if any. From here on, only process 0 prints."""
  given = flags.FLAGS
  settings = processes.detect(
    coordinator=given.coordinator, num_processes=given.num_processes, process_id=given.process_id
  )
  processes.start(settings, peer_timeout_s=given.peer_timeout_s, resumable=resumable)
  if not processes.is_main():
    logging.getLogger("udp_jax").setLevel(logging.WARNING)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
  elif settings is not None:
    # Gloo, which runs collectives on CPUs, prints to stdout; send that to stderr from here on.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)


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
  return f"{SCRIPT} {name}" if _CALL else f"python -m experiments.{name}"


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
    _define_process_flags()
  _define_deterministic()
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
      start_process(resumable=resumable)
      if flags.FLAGS.deterministic:
        _repeat_exactly(flags.FLAGS.workdir if "workdir" in flags.FLAGS else None)
      if several:
        _join_processes(resumable)
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


def start_process(*, resumable: bool = False) -> None:
  """Sets up signals, logging, and jax's compilation cache (jax reads it when imported, later)."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: _stop_at_once(number, resumable))
  # File names may contain bytes that are not text in any encoding.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
  logging.getLogger("udp_jax").setLevel(logging.INFO)
  # Orbax also logs every save, every wait and every error that it raises through absl.
  absl_logging.set_verbosity(absl_logging.FATAL)
  home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "udp_jax" / "xla")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _stop_at_once(number: int, resumable: bool) -> None:
  """Ends the process if no loop has anything to save: each part is complete on disk, or absent.

  An exception would not do: one that is raised in the middle of a compilation crashes the compiler.
  """
  text = f"stopped by {signal.Signals(number).name}"
  if resumable:
    text += "; what is finished is saved: run the same command to go on"
  processes.last_words(text)
  code = 0 if resumable and number == signal.SIGTERM else 128 + number
  processes.ask_to_stop(number)
  processes.leave(code, text, stopped=True)
  locks.release_all()
  os._exit(code)


def _parse(argv: Sequence[str]) -> list[str]:
  given = sys.argv
  try:
    # ml_collections looks for overrides in sys.argv; reports quote the command as given.
    sys.argv = _resolve(argv) if _EXPERIMENT else list(argv)
    return flags.FLAGS(sys.argv)
  except UserError as error:
    sys.exit(_report(error))
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
    # absl and ml_collections raise these for an unknown flag or a value of the wrong type.
    sys.exit(_report(ConfigError(f"{' '.join(str(error).split())} (see --help)")))
  finally:
    sys.argv = given


def _resolve(argv: Sequence[str]) -> list[str]:
  """Puts --config=NAME first, as ml_collections requires, and checks the names of fields.

  Raises:
    ConfigError: there is no such config, variant or field.
  """
  experiment = _EXPERIMENT[0]
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


def _report(error: UserError) -> int:
  text = naming.printable(" ".join(str(error).split()))
  print(f"error: {text}", file=sys.stderr, flush=True)
  return error.exit_code


def _help(*, full: bool) -> str:
  """Describes the entry point, its configs and flags; with `full`, also the flags of libraries."""
  if _CALL and not full:
    return _help_of_call(_CALL[0])
  parts = [_CALL[0].about if _CALL else (sys.modules["__main__"].__doc__ or "").strip()]
  if _EXPERIMENT:
    parts.append("configs (--config=NAME, or --config=NAME:smoke for a run of seconds):")
    parts[-1] += f"\n{describe_configs(_EXPERIMENT[0])}"
  own = [
    flag
    for module, found in flags.FLAGS.flags_by_module_dict().items()
    if module == sys.argv[0] or module.startswith(_OURS)
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
