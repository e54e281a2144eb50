"""The host loop around compiled calls: progress, metrics, checkpoints, and stopping in good order.

One loop serves every long stage (protecting, training). It knows nothing of what it runs: a state,
a function that advances it, and a position that is part of the state's meaning. What the call draws
depends on the state alone, so a run that was interrupted ends like one that was not. Several
processes (`udp_jax.processes`) run it in step: they agree after every call whether to stop.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from udp_jax import processes
from udp_jax.checkpoint import Checkpoints
from udp_jax.errors import DivergedError, Preempted
from udp_jax.metrics_writer import MetricsWriter

_log = logging.getLogger(__name__)


class Advance(NamedTuple):
  """What one call of the compiled program did.

  Attributes:
    state: the new state.
    position: rounds or steps done since the beginning.
    metrics: numbers to write down and to show; fetched here, once a call.
  """

  state: Any
  position: int
  metrics: dict[str, float]


def run(
  advance: Callable[[Any, int], Advance],
  state: Any,
  *,
  total: int,
  label: str,
  unit: str,
  checkpoints: Checkpoints | None = None,
  writer: MetricsWriter | None = None,
  must_be_finite: tuple[str, ...] = ("loss",),
  shown: tuple[str, ...] = ("loss",),
  progress: bool = True,
) -> Any:
  """Advances `state` to position `total`, from the newest checkpoint if there is one.

  Args:
    advance: (state, position) -> Advance. It may donate the state's buffers.
    state: the state at position 0, also the template for restoring.
    total: position to stop at.
    label: for the progress bar and messages.
    unit: what a position counts.
    checkpoints: where to save; None saves nothing.
    writer: where metrics go.
    must_be_finite: metrics whose NaN or infinity ends the run.
    shown: metrics on the progress bar.
    progress: show the bar.

  Raises:
    DivergedError: a metric of `must_be_finite` is not finite; nothing is saved after the last good
      checkpoint.
    Preempted: the process was asked to stop; the state is saved.
  """
  position = 0
  seen: dict[str, float] = {}
  # Whether anything is there is one process's word: a shared disk may show another one less.
  latest = None if checkpoints is None else processes.from_main(checkpoints.latest, label)
  if checkpoints is not None and latest is not None:
    state, position = checkpoints.restore(state, latest), latest
    _log.info("%s: going on from %s %d of %d", label, unit, position, total)
  if writer is not None:
    writer.rewind(position)
  bar = tqdm(
    total=total, initial=position, desc=label, unit=unit, disable=not progress, mininterval=0.5
  )
  # Closed whatever happens: what is being saved when a later call fails must still become whole.
  saving = contextlib.nullcontext() if checkpoints is None else contextlib.closing(checkpoints)
  stop = 0  # The signal that all processes have agreed to stop for.
  with bar, _stop_requests() as received, saving:
    while position < total and not stop:
      start = time.monotonic()
      before = position
      state, position, metrics = advance(state, before)
      metrics = metrics | {"seconds": time.monotonic() - start}
      for name in must_be_finite:
        if name in metrics and not np.isfinite(metrics[name]):
          raise DivergedError(
            f"{label}: {name} is {metrics[name]} at {unit} {position} of {total}; lower the "
            "learning rate or the step size, or use float32. The last good checkpoint is kept"
          )
      if writer is not None:
        writer.write(position, **metrics)
      bar.update(position - before)
      seen |= metrics  # Not every call measures everything.
      bar.set_postfix({n: f"{seen[n]:.4g}" for n in shown if n in seen}, refresh=False)
      stop = max(processes.gather(received[0] if received else 0, f"{label} {position}"))
      ended = position >= total
      if checkpoints is not None and (ended or stop or checkpoints.due(before, position)):
        checkpoints.save(position, state, wait=bool(stop))
  if received and not stop:  # After the last agreement.
    if processes.count() > 1:
      signal.raise_signal(received[0])  # As between two loops.
    stop = received[0]
  if stop:
    saved = "" if checkpoints is None else " and saved; run the same command to go on"
    raise Preempted(f"{label}: stopped at {unit} {position} of {total}{saved}", stop)
  return state


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT instead of dying of them; a second one is not held back."""
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
      pass  # From the terminal, from whoever started the processes and from another one of them.
    else:
      signal.signal(number, previous[number])
      signal.raise_signal(number)

  previous: dict[int, Any] = {}
  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, note)
  except ValueError:  # Not in the main thread: signals are the host program's business.
    yield received
    return
  try:
    yield received
  finally:
    for stopped, handler in previous.items():
      signal.signal(stopped, handler)
