"""What is to be done: which rows, purifiers and threats, with which settings, and where it goes.

workdir/clean/ holdout/                              the 8-bit reference, and other pictures
workdir/protected/<row>/                             protected pictures
workdir/purified/<row>/<purifier>/pictures/          purified pictures
workdir/purified/<row>/<purifier>/cell.json          what was measured on them
workdir/threats/<row>/<purifier>/<threat>/seed<k>/   edits/ or samples/, and cell.json
workdir/stages/                                      checkpoints and metrics of unfinished work
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax import lookup, run_config
from udp_jax.errors import ConfigError
from udp_jax.study import CLEAN

NONE = "none"
# Every result is read against noise of the same size.
CONTROL = "random_noise"

_AT_LEAST = {
  "num_rounds": 1,
  "global_batch_size": 1,
  "num_samples": 4,
  "evaluation.loss_draws": 1,
  "evaluation.bootstrap": 2,
  "checkpoint.every_rounds": 1,
  "checkpoint.every_steps": 1,
  "performance.steps_per_call": 1,
  "performance.sample_batch_size": 1,
}


class Plan(NamedTuple):
  """Names of all parts, in the order in which the report shows them.

  Attributes:
    rows: protections; "clean" and "random_noise" among them.
    purifiers: "none" first.
    threats: may be empty.
    seeds: of the threats.
  """

  rows: tuple[str, ...]
  purifiers: tuple[str, ...]
  threats: tuple[str, ...]
  seeds: tuple[int, ...]


class Cell(NamedTuple):
  """One cell: pictures of a row after a purifier, or what a threat made of them.

  Attributes:
    row: of the plan.
    purifier: of the plan.
    threat: None for the pictures themselves.
    seed: of the threat.
  """

  row: str
  purifier: str
  threat: str | None = None
  seed: int | None = None

  @property
  def name(self) -> str:
    """As messages and progress bars call it."""
    parts = [self.row, self.purifier]
    if self.threat is not None:
      parts += [self.threat, f"seed {self.seed}"]
    return " / ".join(parts)

  def folder(self, workdir: Path) -> Path:
    """Where its files are."""
    if self.threat is None:
      return workdir / "purified" / self.row / self.purifier
    return workdir / "threats" / self.row / self.purifier / self.threat / f"seed{self.seed}"

  @property
  def pictures(self) -> Cell:
    """The cell of the pictures that the threat is given."""
    return Cell(self.row, self.purifier)


def make(
  config: Any,
  *,
  rows: Sequence[str] | None = None,
  purifiers: Sequence[str] | None = None,
  threats: Sequence[str] | None = None,
) -> Plan:
  """The plan of a config.

  "clean", "random_noise" and "none" are always part of it: the others are measured against them.

  Args:
    config: of the matrix.
    rows: instead of `config.rows`.
    purifiers: instead of `config.use_purifiers`.
    threats: instead of `config.use_threats`.

  Raises:
    ConfigError: an unknown name, an unusable number, or nothing to do.
  """
  for field, least in _AT_LEAST.items():
    value = config
    for part in field.split("."):
      value = value[part]
    if not value >= least:  # NaN is refused too.
      raise ConfigError(f"config.{field} is {value}; it must be at least {least:g}")
  run_config.check_radius_255("config.radius_255", config.radius_255)
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
      if name not in known and name not in lookup.available(f"udp_jax.{kind}s"):
        have = ", ".join(sorted({*known, *lookup.available(f"udp_jax.{kind}s")}))
        raise ConfigError(f"unknown {kind} {name!r}; known: {have}")
  return Plan(chosen_rows, chosen_purifiers, chosen_threats, tuple(int(s) for s in config.seeds))


def _unique(names: Sequence[str]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(str(name) for name in names))


def picture_cells(plan: Plan) -> Iterator[Cell]:
  """Cells of pictures, the clean ones first."""
  for row in plan.rows:
    for purifier in plan.purifiers:
      yield Cell(row, purifier)


def threat_cells(plan: Plan, threat: str) -> Iterator[Cell]:
  """Cells of one threat; those that others are compared with come first."""
  for seed in plan.seeds:
    for cell in picture_cells(plan):
      yield cell._replace(threat=threat, seed=seed)


def settings(config: Any, kind: str, name: str, own: Sequence[str] = ()) -> Settings:
  """What a config says of a purifier or threat.

  Args:
    config: of the matrix.
    kind: "purifiers" or "threats".
    name: of the method, or of an entry of `config.<kind>` with a field `method`.
    own: fields that are the matrix's, not the constructor's.
  """
  given = dict(config[kind].get(name, {}))
  method = given.pop("method", name)
  driving = {field: given.pop(field) for field in own if field in given}
  return Settings(method, given, driving)


class Settings(NamedTuple):
  """Settings of one purifier or threat.

  Attributes:
    method: a module of the package.
    options: for its constructor.
    driving: what the matrix itself does with it.
  """

  method: str
  options: dict[str, Any]
  driving: dict[str, Any]


def completed(kind: str, method: str, options: dict[str, Any], known: dict[str, Any]) -> dict:
  """`options` with those of `known` that the constructor asks for and nobody gave.

  Raises:
    ConfigError: no such method.
  """
  constructor = lookup.constructor(f"udp_jax.{kind}", method)
  accepted = inspect.signature(constructor).parameters
  return {name: value for name, value in known.items() if name in accepted} | options
