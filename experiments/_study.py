"""The main of `experiments.eudp` and `experiments.udp`: protect, judge, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError
from udp_jax.runtime import processes

_EVALUATE = flags.DEFINE_bool(
  "evaluate", True, "After protecting, train a model on every row, judge it and write the report."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")
_BUDGET = _cli.budget_flags()


def main(config: Any, workdir: str | None) -> int:
  """Runs a study in `workdir`; prints its table and the path of the report."""
  if config is None:
    raise ConfigError("--config is needed: see --help for the list")
  if not workdir:
    raise ConfigError("--workdir is needed: the folder for checkpoints and results")
  if not config.data.source:
    raise ConfigError("--config.data.source is needed: a folder of pictures")
  from udp_jax.data import places
  from udp_jax.studies import settings

  config = settings.frozen(config, _BUDGET.changes(config))
  with places.use(config=config, work={"--workdir": workdir}, protects=True) as used:
    config = settings.frozen(config, settings.pinned(config))
    return _run(config, used["--workdir"])


def _run(config: Any, folder: Path) -> int:
  from udp_jax.report import html, text
  from udp_jax.studies import rows

  run = _run_pictures if "pictures" in config else _run_study
  made = run(config, folder)
  if not processes.is_main():
    return 0
  for statement in rows.statements(config, config.rows):
    print(f"protected against {statement}")
  if made is None:
    print(f"protected pictures, a folder a row: {(folder / 'protected').absolute()}")
    return 0
  report, assets = made
  text.write_json(folder / "report.json", report)
  html.write_report(folder / "report.html", report, assets)
  print(text.format_table(report))
  if config.notice:
    print(f"\n{config.notice}")
  print(f"\nprotected pictures: {(folder / 'protected').absolute()}")
  print(f"report: {(folder / 'report.html').absolute()}")
  return 0


def _run_study(config: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Runs a study of pictures of one size; returns (report, assets) if it was evaluated."""
  from udp_jax.studies import build, training_sets, training_sets_report

  study = build.open_study(config, folder, progress=_PROGRESS.value)
  found = training_sets.run(study, evaluate=_EVALUATE.value)
  if not (_EVALUATE.value and processes.is_main()):
    return None
  return training_sets_report.build(config, found.rows, folder, found.model, found.feature_label)


def _run_pictures(config: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Runs a study of pictures of any size; returns (report, assets) if it was evaluated."""
  from udp_jax.studies import pictures

  return pictures.run(config, folder, evaluate=_EVALUATE.value, progress=_PROGRESS.value)


def start(experiment: str) -> None:
  """Defines the flags of a study and runs it."""
  config = _cli.define_config(experiment)
  workdir = _cli.workdir_flag()
  _cli.run(lambda argv: main(config.value, workdir.value), resumable=True)
