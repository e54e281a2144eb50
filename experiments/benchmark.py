"""Compares the library's compiled steps with PyTorch on this machine, in one run.

  python -m experiments.benchmark --config=default --workdir=runs/bench

`make bench` installs PyTorch and diffusers in a separate environment and runs this command. It
prints tables; workdir/bench.json has all numbers, workdir/bench.md the tables. Each contestant is a
process of its own, and they take turns. After a kill, the same command continues with the next
race. Exit code 1: one of our own contestants failed; its row says why. On an NVIDIA GPU:

  python -m experiments.benchmark --config=gpu --workdir=runs/gpu --peer_python=PATH

There, if PyTorch cannot be started, ours are measured without it; the exit code is then 1 too.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_STARTED = time.monotonic()
_ONLY = flags.DEFINE_string(
  "only",
  "",
  "Regular expressions, with commas between them: only tasks whose key contains one, e.g. "
  "round/demo or primitives. The name of a group of races that has an order, such as cifar in "
  "config gpu, selects that group alone.",
)
_SECONDS = flags.DEFINE_float(
  "seconds",
  0.0,
  "Seconds in which to end, 0 for no limit. Races that would take longer are left out and listed; "
  "the same command goes on with them.",
  lower_bound=0.0,
)
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", ".venv-peers/bin/python", "Interpreter that has torch and diffusers."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")
_CONFIG = _cli.define_config("benchmark")
_WORKDIR = _cli.workdir_flag()


def main(argv: Sequence[str]) -> int:
  """Measures, prints, and returns the exit code."""
  del argv
  if _CONFIG.value is None:
    raise ConfigError("--config is needed: see --help for the list")
  if not _WORKDIR.value:
    raise ConfigError("--workdir is needed: the folder for bench.json and bench.md")
  from udp_jax.data import places

  with places.use(work={"--workdir": _WORKDIR.value}) as used:
    return _measure(used["--workdir"])


def _measure(workdir: Path) -> int:
  from udp_jax.benchmark import runner, tables
  from udp_jax.studies import settings

  report = runner.run(
    settings.frozen(_CONFIG.value),
    workdir,
    peer_python=_PEER_PYTHON.value,
    only=_ONLY.value,
    deadline=_STARTED + _SECONDS.value if _SECONDS.value else math.inf,
    progress=_PROGRESS.value,
  )
  print(tables.text(report))
  if verdicts := tables.verdicts(report["rows"]):
    print("\nOurs over the fastest peer, by race (below 1: ours is faster):")
    print("\n".join(f"  {line}" for line in verdicts))
  print(f"\nall numbers: {(workdir / 'bench.json').absolute()}")
  without = report["header"].get("without_torch")
  if without:
    print(f"error: PyTorch took no part, so ours raced nobody: {without}", file=sys.stderr)
  return 1 if without or runner.failures(report) else 0


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
