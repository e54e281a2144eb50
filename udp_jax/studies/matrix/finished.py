"""The results of a matrix run that the report uses."""

from __future__ import annotations

from typing import Any, NamedTuple

from udp_jax.data.image_set import ImageSet
from udp_jax.studies.matrix import catalogue
from udp_jax.studies.matrix.plan import Plan


class Finished(NamedTuple):
  """The results of a matrix run that the report uses.

  Attributes:
    config: settings of the run, with those that the model added.
    plan: rows, purifiers and threats of the run.
    clean: the pictures to protect.
    holdout: the held-out pictures.
    metrics: metrics by kind of cell.
    kinds: what each threat makes, "edits" or "samples".
    networks: networks that the numbers depend on.
    seconds: seconds that this run spent on each part.
    failed: number of cells without numbers.
    protecting: settings with the model that protections attack, by which rows are read.
  """

  config: Any
  plan: Plan
  clean: ImageSet
  holdout: ImageSet
  metrics: dict[str, list[catalogue.Metric]]
  kinds: dict[str, str]
  networks: dict[str, Any]
  seconds: dict[str, float]
  failed: int
  protecting: Any
