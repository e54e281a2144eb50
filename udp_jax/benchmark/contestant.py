"""Our contestant: the library's compiled round, as production runs it.

One program is compiled: `Protection.update` with donated state and a traced `phase`, as the entry
points dispatch it. Its phases are the min step, the max step and the round.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.benchmark import flops, problem, serve
from udp_jax.benchmark.problem import PHASES


class Contestant:
  """Handlers of a race. Times are per step: a round of K train and K perturb steps counts as K."""

  def prepare(self, works: list[str], **spec: Any) -> dict[str, Any]:
    """Builds, compiles and runs each of `works` once; `spec` holds fields of `problem.Spec`."""
    self._problem = problem.build(problem.Spec(**spec))
    self._state = self._problem.state
    self._problem = self._problem._replace(state=None)
    self._steps = spec.get("train_steps", 1)
    started = time.perf_counter()
    self._update = problem.compile_round(self._problem._replace(state=self._state))
    compiled = time.perf_counter()
    for work in works:
      self._step(work)
    warm = time.perf_counter()
    return {
      "compile_s": compiled - started,
      "warmup_s": warm - compiled,
      "compile_peak_rss_mib": serve.peak_rss_mib(),
      "tflop": self._tflop(),
    }

  def run(self, work: str) -> dict[str, Any]:
    """Runs `work` once, timed."""
    started = time.perf_counter()
    self._step(work)
    return {"seconds": (time.perf_counter() - started) / self._steps}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs `work` once, untimed, and returns its peak memory."""
    return serve.measured(lambda: self._step(work))

  def scratch_mib(self) -> float:
    """Scratch memory of the compiled program, besides its arguments and results, in MiB."""
    return self._update.memory_analysis().temp_size_in_bytes / 2**20

  def _step(self, work: str) -> None:
    problem, phase = self._problem, jnp.int32(PHASES[work])
    result = self._update(problem.key, self._state, problem.data, problem.params, phase)
    self._state, info = jax.block_until_ready(result)
    # Fetched as in the host loop; this is also a guard, as a race of NaNs would mean nothing.
    loss, train_loss = np.asarray(info.loss), np.asarray(info.train_loss)
    seen = [train_loss] * (work != "max") + [loss] * (work in ("max", "round"))
    if not all(np.isfinite(values).all() for values in seen):
      raise FloatingPointError(f"the loss of {work} is not finite")

  def _tflop(self) -> dict[str, float | None]:
    """TFLOP of one step for each kind of work, from the compiled program."""
    cost = flops.count(self._update.as_text())
    # The two phases of the round; train comes first, because perturb needs its weights.
    parts = cost.parts if len(cost.parts) == 2 else (None, None)
    found = {"round": cost.total, "joint": cost.total, "min": parts[0], "max": parts[1]}
    scale = 1e12 * self._steps
    return {work: value / scale if value is not None else None for work, value in found.items()}
