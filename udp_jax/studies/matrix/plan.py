"""The plan of a matrix: its rows, purifiers, threats, their settings, and the folders of results.

workdir/clean/ holdout/                              the 8-bit reference, and held-out pictures
workdir/protected/<row>/                             protected pictures
workdir/purified/<row>/<purifier>/pictures/          purified pictures
workdir/purified/<row>/<purifier>/cell.json          measurements of them
workdir/threats/<row>/<purifier>/<threat>/seed<k>/   edits/ or samples/, and cell.json
workdir/stages/                                      checkpoints and metrics of unfinished work
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax import registry
from udp_jax.data.budget import check_radius_255
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError
from udp_jax.report.names import NONE
from udp_jax.studies import distances
from udp_jax.studies import settings as settings_lib

FOLDER = "pictures"


# Every result is compared with noise of the same size.
CONTROL = "random_noise"

_AT_LEAST = {
  "num_rounds": 1,
  "global_batch_size": 1,
  "num_samples": 4,
  "evaluation.loss_draws": 1,
  "checkpoint.every_rounds": 1,
  "checkpoint.every_steps": 1,
  "performance.steps_per_call": 1,
  "performance.sample_batch_size": 1,
}


class Plan(NamedTuple):
  """Names of all parts, in the order of the report.

  Attributes:
    rows: protections, including "clean" and "random_noise".
    purifiers: purifiers, "none" first.
    threats: threats; may be empty.
    seeds: seeds of the threats.
  """

  rows: tuple[str, ...]
  purifiers: tuple[str, ...]
  threats: tuple[str, ...]
  seeds: tuple[int, ...]


class Cell(NamedTuple):
  """One cell: pictures of a row after a purifier, or what a threat made from them.

  Attributes:
    row: a row of the plan.
    purifier: a purifier of the plan.
    threat: a threat of the plan; None for the pictures themselves.
    seed: seed of the threat.
  """

  row: str
  purifier: str
  threat: str | None = None
  seed: int | None = None

  @property
  def name(self) -> str:
    """Name of the cell in messages and on progress bars."""
    parts = [self.row, self.purifier]
    if self.threat is not None:
      parts += [self.threat, f"seed {self.seed}"]
    return " / ".join(parts)

  def folder(self, workdir: Path) -> Path:
    """Folder of the cell's files."""
    if self.threat is None:
      return workdir / "purified" / self.row / self.purifier
    return workdir / "threats" / self.row / self.purifier / self.threat / f"seed{self.seed}"

  @property
  def pictures(self) -> Cell:
    """The cell whose pictures the threat works on."""
    return Cell(self.row, self.purifier)


def make(
  config: Any,
  *,
  rows: Sequence[str] | None = None,
  purifiers: Sequence[str] | None = None,
  threats: Sequence[str] | None = None,
) -> Plan:
  """Makes the plan of a config.

  "clean", "random_noise" and "none" are always included: the others are compared with them.

  Args:
    config: settings of the matrix.
    rows: replaces `config.rows`.
    purifiers: replaces `config.use_purifiers`.
    threats: replaces `config.use_threats`.

  Raises:
    ConfigError: a name is unknown, a number cannot be used, or there is nothing to do.
  """
  settings_lib.check_least(config, _AT_LEAST)
  check_radius_255("config.radius_255", config.radius_255)
  settings_lib.check_clean_sets(config, config.rows if rows is None else rows)
  if not config.seeds:
    raise ConfigError("config.seeds needs at least one entry")
  chosen_rows = _unique([CLEAN, CONTROL, *(config.rows if rows is None else rows)])
  chosen_purifiers = _unique([NONE, *(config.use_purifiers if purifiers is None else purifiers)])
  chosen_threats = _unique(config.use_threats if threats is None else threats)
  for kind, chosen, known in (
    ("purifier", chosen_purifiers[1:], config.purifiers),
    ("threat", chosen_threats, config.threats),
  ):
    for name in chosen:
      if name not in known and name not in registry.available(f"udp_jax.{kind}s"):
        have = ", ".join(sorted({*known, *registry.available(f"udp_jax.{kind}s")}))
        raise ConfigError(f"unknown {kind} {name!r}; known: {have}")
  return Plan(chosen_rows, chosen_purifiers, chosen_threats, tuple(int(s) for s in config.seeds))


def _unique(names: Sequence[str]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(str(name) for name in names))


def picture_cells(plan: Plan) -> Iterator[Cell]:
  """Yields the cells of pictures, the clean ones first."""
  for row in plan.rows:
    for purifier in plan.purifiers:
      yield Cell(row, purifier)


def threat_cells(plan: Plan, threat: str) -> Iterator[Cell]:
  """Yields the cells of one threat, starting with those that others are compared with."""
  for seed in plan.seeds:
    for cell in picture_cells(plan):
      yield cell._replace(threat=threat, seed=seed)


def settings(config: Any, kind: str, name: str, own: Sequence[str] = ()) -> Settings:
  """Returns the settings of a purifier or threat in a config.

  Args:
    config: settings of the matrix.
    kind: "purifiers" or "threats".
    name: a method, or an entry of `config.<kind>` with a field `method`.
    own: names of fields that the matrix reads, not the constructor.
  """
  given = dict(config[kind].get(name, {}))
  method = given.pop("method", name)
  driving = {field: given.pop(field) for field in own if field in given}
  return Settings(method, distances.in_options(kind, method, given), driving)


class Settings(NamedTuple):
  """Settings of one purifier or threat.

  Attributes:
    method: a module of the package.
    options: keyword arguments of its constructor.
    driving: settings that the matrix itself reads.
  """

  method: str
  options: dict[str, Any]
  driving: dict[str, Any]


def completed(kind: str, method: str, options: dict[str, Any], known: dict[str, Any]) -> dict:
  """Fills missing constructor options in `options` from `known`.

  Raises:
    ConfigError: there is no such method.
  """
  accepted = registry.fields(registry.constructor(f"udp_jax.{kind}", method))
  return {name: value for name, value in known.items() if name in accepted} | options


def folder_of(cell: Cell, workdir: Path) -> Path:
  """Folder of a cell's pictures; for "none", that of the protected or the clean pictures."""
  if cell.purifier == NONE:
    return workdir / "clean" if cell.row == CLEAN else workdir / "protected" / cell.row
  return Cell(cell.row, cell.purifier).folder(workdir) / FOLDER
