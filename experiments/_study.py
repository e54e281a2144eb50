"""The main of `experiments.eudp` and `experiments.udp`: protect, judge, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax import processes
from udp_jax.errors import ConfigError

_EVALUATE = flags.DEFINE_bool(
  "evaluate", True, "After protecting, train a model on every row, judge it and write the report."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(config: Any, workdir: str | None) -> int:
  """Runs a study in `workdir` and prints its table and where the report is."""
  if config is None:
    raise ConfigError("--config is needed: see --help for the list")
  if not workdir:
    raise ConfigError("--workdir is needed: the folder for checkpoints and results")
  if not config.data.source:
    raise ConfigError("--config.data.source is needed: a folder of pictures")
  from udp_jax import study
  from udp_jax.report import build, html, text

  folder = Path(workdir)
  found = study.run_study(config, folder, evaluate=_EVALUATE.value, progress=_PROGRESS.value)
  if not processes.is_main():
    return 0
  if not _EVALUATE.value:
    print(f"protected pictures, a folder a row: {(folder / 'protected').absolute()}")
    return 0
  report, assets = build.build(config, found.rows, folder, found.model, found.feature_label)
  text.write_json(folder / "report.json", report)
  html.write_report(folder / "report.html", report, assets)
  print(text.format_table(report))
  if config.notice:
    print(f"\n{config.notice}")
  print(f"\nprotected pictures: {(folder / 'protected').absolute()}")
  print(f"report: {(folder / 'report.html').absolute()}")
  return 0


def start(experiment: str) -> None:
  """Defines the flags of a study and runs it."""
  config = _cli.define_config(experiment)
  workdir = _cli.workdir_flag()
  _cli.run(lambda argv: main(config.value, workdir.value), resumable=True)
