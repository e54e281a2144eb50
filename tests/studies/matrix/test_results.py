"""Commands that make a cell again."""

from __future__ import annotations

from udp_jax.studies.matrix import results
from udp_jax.studies.matrix.plan import Cell


def test_commands_that_reproduce() -> None:
  command = "python -m experiments.impress --config=demo --workdir w --rows=a,b --config.seed=3"
  assert results.reproducing(command) == (
    "python -m experiments.impress --config=demo --rows=a,b --config.seed=3 --workdir=WORKDIR"
  )
  assert results.reproducing(command, Cell("eudp", "jpeg", "lora", 1)) == (
    "python -m experiments.impress --config=demo --config.seed=3 --rows=eudp --purifiers=jpeg "
    "--threats=lora --workdir=WORKDIR"
  )
  assert results.reproducing("") == ""
