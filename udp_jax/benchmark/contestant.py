"""Our contestant: the library's compiled round, as production runs it.

One program is compiled: `Protection.update` with donated state and a traced `phase`, as the entry
points dispatch it. Its phases are the min step, the max step and the round.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.benchmark import flops, problem, serve
from udp_jax.benchmark.problem import PHASES

# What jax reports when it loads a program: the seconds of its compilation, less those of loading.
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
# And the seconds that each program took to compile or to load, without tracing.
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Contestant:
  """Handlers of a race. Times are per step: a round of K train and K perturb steps counts as K."""

  def prepare(self, works: list[str], **spec: Any) -> dict[str, Any]:
    """Builds, compiles and runs each of `works` once; `spec` holds fields of `problem.Spec`."""
    self._problem = problem.build(problem.Spec(**spec))
    self._state = self._problem.state
    self._problem = self._problem._replace(state=None)
    self._steps = spec.get("train_steps", 1)
    self._phase = "max" if spec.get("method") == "advdm" else spec.get("phase", "")
    started = time.perf_counter()
    with _durations() as found:
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
      # Small programs may be loaded beside one that is compiled.
      "cached": sum(found.get(_SAVED, [])) > sum(found.get(_COMPILED, [])),
    }

  def run(self, work: str) -> dict[str, Any]:
    """Runs `work` once, timed."""
    started = time.perf_counter()
    self._step(work)
    return {"seconds": (time.perf_counter() - started) / self._steps}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs `work` once, untimed, and returns its peak memory."""
    found = serve.measured(lambda: self._step(work))
    return found | device_memory(self._update, jax.devices()[0])

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
    """TFLOP of one step for each kind of work, from the compiled program; {} if it is not read."""
    try:
      cost = flops.count(self._update.as_text())
    except (LookupError, NotImplementedError, TypeError, ValueError):
      # A program with something unknown in it costs the row its FLOPs, not its time.
      traceback.print_exc()
      return {}
    if self._phase:
      return {self._phase: cost.total / (1e12 * self._steps)}
    # The two phases of the round; train comes first, because perturb needs its weights.
    parts = cost.parts if len(cost.parts) == 2 else (None, None)
    found = {"round": cost.total, "joint": cost.total, "min": parts[0], "max": parts[1]}
    scale = 1e12 * self._steps
    return {work: value / scale if value is not None else None for work, value in found.items()}


def device_memory(program: Any, device: Any) -> dict[str, float]:
  """Device memory in MiB; nothing for a device without an account of its own, such as a CPU.

  `device_mib` is a program's: arguments, results and scratch, by the compiler. The largest amount
  in use since the process started, `process_mib`, cannot be reset, so it is no step's.
  """
  account = device.memory_stats()
  if not account:
    return {}
  sizes = program.memory_analysis()
  in_use = {"process_mib": account["peak_bytes_in_use"] / 2**20}
  if sizes is None:
    return in_use
  held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  # Results that take the place of donated arguments are counted once.
  held -= sizes.alias_size_in_bytes
  return {"device_mib": held / 2**20} | in_use


@contextlib.contextmanager
def _durations() -> Iterator[dict[str, list[float]]]:
  """Collects the seconds that jax reports inside the block, by what they are of."""
  found: dict[str, list[float]] = {}

  def listen(event: str, duration_secs: float, **_: Any) -> None:
    found.setdefault(event, []).append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
