"""The round that is raced: its phases, and what it is built of."""

from __future__ import annotations

import numpy as np

from udp_jax.benchmark import plan, problem
from udp_jax.protections.base import PERTURB, Protection


def test_phases_are_those_of_the_problem() -> None:
  assert plan.PHASES == tuple(problem.PHASES)


def test_a_program_of_one_phase_runs_that_whatever_it_is_asked_for() -> None:
  seen = []

  def update(key, state, data, params, phase=None, arguments=None):
    seen.append((key, state, data, params, phase, arguments))
    return state, None

  made = problem._of_phase(Protection(lambda *_: 0, update), problem.PHASES["max"])  # type: ignore
  made.update(1, 2, 3, 4, problem.PHASES["round"], 5)  # type: ignore
  made.update(1, 2, 3, 4)  # type: ignore
  assert seen == [(1, 2, 3, 4, PERTURB, 5), (1, 2, 3, 4, PERTURB, None)]
  # Known when the program is traced, so that the other phase is not part of it.
  assert isinstance(seen[0][4], np.int32)
