"""Which protection survives which purifier? A matrix of protections, purifiers and threats.

  python -m experiments.impress --config=demo --workdir=runs/impress
  python -m experiments.impress --config=photoguard --config.model.path=SD_FOLDER \
      --config.data.source=folder:PICTURES --workdir=runs/photoguard

Writes report.html, report.json and cells.csv. A killed run continues with the missing cells; a
failed cell is recorded with its error, and the next run tries it again. Exit code 7: the report is
written, but some cells failed.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_ROWS = flags.DEFINE_list("rows", None, "Protections instead of config.rows; controls are added.")
_PURIFIERS = flags.DEFINE_list("purifiers", None, "Purifiers instead of config.use_purifiers.")
_THREATS = flags.DEFINE_list("threats", None, "Threats instead of config.use_threats.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_BUDGET = _cli.budget_flags()
_CONFIG = _cli.define_config("impress")
_WORKDIR = _cli.workdir_flag()

SOME_CELLS_FAILED = 7


def main(argv: Sequence[str]) -> int:
  """Runs the matrix that the flags ask for; returns the exit code."""
  del argv
  config = _CONFIG.value
  if config is None or not _WORKDIR.value:
    raise ConfigError("--config and --workdir are needed; see --help")
  if not config.data.source:
    raise ConfigError("--config.data.source is needed: a folder of pictures")
  from udp_jax.data import places
  from udp_jax.studies import settings

  config = settings.frozen(config, _BUDGET.changes(config))
  with places.use(config=config, work={"--workdir": _WORKDIR.value}, protects=True) as used:
    config = settings.frozen(config, settings.pinned(config))
    return _run(config, used["--workdir"])


def _run(config: Any, workdir: Path) -> int:
  from udp_jax.report import matrix, survival, text
  from udp_jax.runtime import files, provenance
  from udp_jax.studies import rows
  from udp_jax.studies.matrix import mosaics, plan, results, run

  started = datetime.datetime.now(datetime.UTC)
  wanted = plan.make(config, rows=_ROWS.value, purifiers=_PURIFIERS.value, threats=_THREATS.value)
  finished = run.run_matrix(config, workdir, wanted, progress=_PROGRESS.value)
  report = results.build(workdir, finished, command=provenance.command())
  ended = datetime.datetime.now(datetime.UTC)
  # Kept out of the report, which does not depend on when and where it was made.
  about = {
    "command": provenance.command(),
    "commit": provenance.commit() or "not a checkout",
    "started": started.isoformat(timespec="seconds"),
    "ended": ended.isoformat(timespec="seconds"),
    "seconds": {part: round(spent, 1) for part, spent in finished.seconds.items()},
    "hardware": provenance.hardware(),
    "versions": provenance.versions(),
  }
  files.write_json(workdir / "run.json", about)
  text.write_json(workdir / "report.json", report)
  results.write_csv(workdir / "cells.csv", report)
  about["example"] = results.example(report)
  matrix.write_report(workdir / "report.html", report, about, mosaics.pictures(report, workdir))
  print(survival.format_survival(report))
  made, tested = (c.model.path for c in (finished.protecting, config))
  for statement in rows.statements(finished.protecting, wanted.rows):
    print(f"\nprotected against {statement}")
  if made != tested:
    print(f"protections were made on {made}, and tested on {tested}")
  if config.notice:
    print(f"\n{config.notice}")
  for failure in report["failures"]:
    place = " / ".join(str(v) for k, v in failure.items() if k != "error" and v is not None)
    print(f"failed: {place}: {failure['error']}")
  print(f"\nreport: {(workdir / 'report.html').absolute()}")
  return SOME_CELLS_FAILED if report["failures"] else 0


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
