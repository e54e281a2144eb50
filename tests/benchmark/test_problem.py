"""The round that is raced: its phases, and what it is built of."""

from __future__ import annotations

from udp_jax.benchmark import plan, problem


def test_phases_are_those_of_the_problem() -> None:
  assert plan.PHASES == tuple(problem.PHASES)
