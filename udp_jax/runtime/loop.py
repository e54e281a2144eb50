"""The host loop around compiled calls: progress, metrics, checkpoints and orderly stops.

One loop serves every long stage (protecting, training). It sees only a state, a function that
advances the state, and a position. Random draws depend on the state alone, so an interrupted and
resumed run gives the same result as an uninterrupted one. Several processes
(`udp_jax.runtime.processes`) run the loop in step and agree after every call whether to stop.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from udp_jax.errors import DivergedError, Preempted
from udp_jax.runtime import metrics_log, processes
from udp_jax.runtime.checkpoint import Checkpoints
from udp_jax.runtime.metrics_log import MetricsWriter

_log = logging.getLogger(__name__)
# Shorter work needs no estimate.
_WORTH_SAYING_S = 60.0


class Advance(NamedTuple):
  """The result of one call of the compiled program.

  Attributes:
    state: the new state.
    position: rounds or steps done since the start.
    metrics: scalars to log and show, fetched from the device once per call.
  """

  state: Any
  position: int
  metrics: dict[str, float]


class Work(NamedTuple):
  """Describes a long piece of work to the user.

  Attributes:
    label: name on the progress bar and in messages.
    unit: what a position counts: "round" or "step".
    total: position at which the work is done.
    must_be_finite: names of metrics that end the run if they become NaN or infinite.
    shown: names of metrics on the progress bar.
    progress: whether to show a progress bar.
    afterwards: work of the same kind that follows, as a multiple of this, for the estimate.
    compiles: whether the first call compiles too, so that the estimate measures the second.
  """

  label: str
  unit: str
  total: int
  must_be_finite: tuple[str, ...] = ("loss",)
  shown: tuple[str, ...] = ("loss",)
  progress: bool = True
  afterwards: float = 0.0
  compiles: bool = False


def run_in(
  folder: Path,
  advance: Callable[[Any, int], Advance],
  state: Any,
  work: Work,
  *,
  every: int,
  keep: int = 2,
) -> Any:
  """Runs `run` with folder/checkpoints and folder/metrics.jsonl; process 0 writes the metrics.

  Args:
    folder: scratch folder of this work.
    advance: (state, position) -> Advance, as for `run`.
    state: the state at position 0.
    work: what is done and how it is shown.
    every: number of positions between two checkpoints.
    keep: number of newest checkpoints to keep.

  Raises:
    DivergedError, OutputError, Preempted: as for `run`.
  """
  writer = metrics_log.main_writer(folder)
  checkpoints = Checkpoints(folder / "checkpoints", every=every, keep=keep)
  with contextlib.nullcontext() if writer is None else contextlib.closing(writer):
    return run(advance, state, work, checkpoints=checkpoints, writer=writer)


def run(
  advance: Callable[[Any, int], Advance],
  state: Any,
  work: Work,
  *,
  checkpoints: Checkpoints | None = None,
  writer: MetricsWriter | None = None,
) -> Any:
  """Advances `state` to position `work.total`, starting from the newest checkpoint if any.

  Args:
    advance: (state, position) -> Advance. It may donate the state's buffers.
    state: the state at position 0, also the template for restoring.
    work: what is done and how it is shown.
    checkpoints: where to save the state; None saves nothing.
    writer: where to write metrics; None drops them.

  Raises:
    DivergedError: a metric in `must_be_finite` is not finite; the last good checkpoint stays the
      newest.
    Preempted: the process was asked to stop; the state is saved.
  """
  label, unit, total = work.label, work.unit, work.total
  position = 0
  seen: dict[str, float] = {}
  unmeasured = 2 if work.compiles else 1
  # Process 0 decides whether a checkpoint exists; other hosts may not see it yet.
  latest = None if checkpoints is None else processes.from_main(checkpoints.latest, label)
  if checkpoints is not None and latest is not None:
    state, position = checkpoints.restore(state, latest), latest
    _log.info("%s: going on from %s %d of %d", label, unit, position, total)
  if writer is not None:
    writer.rewind(position)
  quiet = not (work.progress and processes.is_main())
  bar = tqdm(total=total, initial=position, desc=label, unit=unit, disable=quiet, mininterval=0.5)
  # Always close: a save in progress must finish even if a later call fails.
  saving = contextlib.nullcontext() if checkpoints is None else contextlib.closing(checkpoints)
  stop = 0  # The signal for which all processes have agreed to stop.
  with bar, _stop_requests() as received, saving:
    while position < total and not stop:
      start = time.monotonic()
      before = position
      state, position, metrics = advance(state, before)
      metrics = metrics | {"seconds": time.monotonic() - start}
      for name in work.must_be_finite:
        if name in metrics and not np.isfinite(metrics[name]):
          raise DivergedError(
            f"{label}: {name} is {metrics[name]} at {unit} {position} of {total}; lower the "
            "learning rate or the step size, or use float32. The last good checkpoint is kept"
          )
      if writer is not None:
        writer.write(position, **metrics)
      bar.update(position - before)
      unmeasured -= 1
      if unmeasured == 0:
        left = total * (1 + work.afterwards) - position
        say_left(label, left * metrics["seconds"] / (position - before))
      seen |= metrics  # A call need not measure every metric.
      bar.set_postfix({n: f"{seen[n]:.4g}" for n in work.shown if n in seen}, refresh=False)
      stop = max(processes.gather(received[0] if received else 0, f"{label} {position}"))
      ended = position >= total
      if checkpoints is not None and (ended or stop or checkpoints.due(before, position)):
        checkpoints.save(position, state, wait=bool(stop))
  if received and not stop:  # The signal arrived after the last agreement.
    if processes.count() > 1:
      signal.raise_signal(received[0])  # Handle it as if it had arrived between two loops.
    stop = received[0]
  if stop:
    saved = "" if checkpoints is None else " and saved; run the same command to go on"
    raise Preempted(f"{label}: stopped at {unit} {position} of {total}{saved}", stop)
  return state


def say_left(label: str, seconds: float) -> None:
  """Says how long work still takes by what was measured, unless that is short."""
  if seconds >= _WORTH_SAYING_S:
    _log.info("%s: about %s left on this machine", label, duration(seconds))


def duration(seconds: float) -> str:
  """Returns a time for people.

  >>> duration(50), duration(2400), duration(9000)
  ('50 seconds', '40 minutes', '2.5 hours')
  """
  if seconds < 90:
    return f"{seconds:.0f} seconds"
  return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT instead of dying; a second signal takes effect at once."""
  received: list[int] = []
  first = 0.0

  def note(number: int, frame: Any) -> None:
    nonlocal first
    if not received:
      first = time.monotonic()
      received.append(number)
      processes.ask_to_stop(number)
      _log.warning("received %s: stopping after this call", signal.Signals(number).name)
    elif processes.count() > 1 and time.monotonic() - first < processes.SAME_REQUEST_S:
      pass  # The same request can also arrive from the launcher and from other processes.
    else:
      signal.signal(number, previous[number])
      signal.raise_signal(number)

  previous: dict[int, Any] = {}
  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, note)
  except ValueError:  # Outside the main thread, the host program handles signals.
    yield received
    return
  try:
    yield received
  finally:
    for stopped, handler in previous.items():
      signal.signal(stopped, handler)
