"""Measurements without an opponent: cost against work, devices, host overhead, compile time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.benchmark import flops, serve
from udp_jax.benchmark import problem as problem_lib
from udp_jax.protections.base import WHOLE


class _Rounds:
  """A compiled round and its state, which can be run repeatedly."""

  def __init__(self, **spec: Any):
    problem = problem_lib.build(problem_lib.Spec(**spec))
    self.problem, self.state = problem._replace(state=None), problem.state
    started = time.perf_counter()
    self.update = problem_lib.compile_round(problem)
    self.compile_s = time.perf_counter() - started
    self()

  def __call__(self) -> None:
    """Runs one round and waits for it."""
    self.dispatch()
    jax.block_until_ready(self.state)

  def dispatch(self) -> None:
    """Starts one round without waiting for it."""
    problem = self.problem
    self.state, _ = self.update(
      problem.key, self.state, problem.data, problem.params, jnp.int32(WHOLE)
    )


def cost(repeats: int = 3, **spec: Any) -> dict[str, Any]:
  """Measures seconds, TFLOP and peak memory of a round; `spec` holds fields of `problem.Spec`."""
  rounds = _Rounds(**spec)
  seconds = _timed(rounds, repeats)
  return {
    "round_s": statistics.median(seconds),
    "compile_s": rounds.compile_s,
    "tflop": flops.count(rounds.update.as_text()).total / 1e12,
    **serve.measured(rounds),
  }


def scaling(delta_file: str, num_rounds: int = 2, repeats: int = 3, **spec: Any) -> dict[str, Any]:
  """Times the round over all devices of this process; writes delta after `num_rounds` rounds.

  XLA_FLAGS sets the number of devices at the start of the process.
  """
  rounds = _Rounds(spread=True, **spec)
  for _ in range(num_rounds - 1):
    rounds()
  np.save(delta_file, np.asarray(rounds.state.delta))
  text = rounds.update.as_text()
  collectives = [
    line for line in text.splitlines() if any(f" {kind}(" in line for kind in _COLLECTIVES)
  ]
  return {
    "devices": jax.device_count(),
    "round_s": statistics.median(_timed(rounds, repeats)),
    "compile_s": rounds.compile_s,
    "collectives": len(collectives),
  }


_COLLECTIVES = (
  *("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"),
  *("all-reduce-start", "all-gather-start", "collective-permute-start"),
)


def host_overhead(
  num_rounds: int, repeats: int = 3, in_one_dispatch: bool = True, **spec: Any
) -> dict[str, Any]:
  """Measures the time that the host adds to a round.

  `dispatch_s` times a program with the round's arguments, results and donation that computes
  nothing: the time of Python, the runtime and the transfer of the losses. With `in_one_dispatch`,
  `num_rounds` rounds in one program are timed in turns with as many dispatches.
  """
  rounds = _Rounds(**spec)
  problem = rounds.problem
  result: dict[str, Any] = {"round_s": statistics.median(_timed(rounds, repeats))}

  def nothing(key, state, data, params, phase):
    del key, data, params
    empty = jnp.zeros_like(problem.data.ids, jnp.float32)
    return state._replace(round=state.round + phase), (empty, jnp.zeros((1,)))

  idle = (
    jax.jit(nothing, donate_argnums=1)
    .lower(problem.key, rounds.state, problem.data, problem.params, jnp.int32(0))
    .compile()
  )

  def dispatch() -> None:
    for _ in range(20):
      rounds.state, info = idle(
        problem.key, rounds.state, problem.data, problem.params, jnp.int32(WHOLE)
      )
      for leaf in info:
        np.asarray(leaf)

  result["dispatch_s"] = statistics.median(_timed(dispatch, 5)) / 20
  result["overhead_percent"] = 100 * result["dispatch_s"] / result["round_s"]
  if in_one_dispatch:
    body = problem.protection.update

    def many(key, state, data):
      return jax.lax.scan(
        lambda s, _: (body(key, s, data, problem.params)[0], None), state, length=num_rounds
      )

    one = jax.jit(many, donate_argnums=1).lower(problem.key, rounds.state, problem.data).compile()

    def all_in_one() -> None:
      rounds.state, _ = jax.block_until_ready(one(problem.key, rounds.state, problem.data))

    def one_by_one() -> None:
      for _ in range(num_rounds):
        rounds()

    all_in_one()
    pairs = [(_timed(all_in_one, 1)[0], _timed(one_by_one, 1)[0]) for _ in range(repeats)]
    together, apart = (statistics.median(times) / num_rounds for times in zip(*pairs))
    result |= {"one_dispatch_s": together, "many_dispatches_s": apart}
    result["difference_percent"] = 100 * (apart / together - 1)
  return result


def compile_time(**spec: Any) -> dict[str, Any]:
  """Measures the seconds to compile the round, without a cache or from the cache folder."""
  cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
  problem = problem_lib.build(problem_lib.Spec(**spec))
  started = time.perf_counter()
  traced = problem_lib.lower_round(problem)
  lowered = time.perf_counter()
  traced.compile()
  return {
    "trace_s": lowered - started,
    "compile_s": time.perf_counter() - lowered,
    "cache_mib": sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 2**20,
  }


def _timed(run: Callable[[], None], repeats: int) -> list[float]:
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - started)
  return seconds
