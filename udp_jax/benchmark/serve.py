"""The worker's end of the pipe: one JSON object per line in each direction. Standard library only.

It also runs in the peers' environment, where this package and jax are not installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def serve(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
  """Answers {"do": NAME, **arguments} with `handlers[NAME](**arguments)` until "stop" or EOF.

  An answer is the handler's dict with two more entries: `cpu_seconds` of this process during the
  request, and `idle_cpu_seconds` while it waited for the request, because a worker that spins while
  waiting slows the others. An exception becomes {"error": ...} and the worker continues.
  """
  _die_with_parent()
  # stdout is the pipe, so anything that libraries print goes to stderr.
  replies = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  idle_since = time.process_time()
  for line in sys.stdin:
    request = json.loads(line)
    name = request.pop("do")
    if name == "stop":
      return
    started = time.process_time()
    try:
      answer = handlers[name](**request)
    except Exception as error:
      traceback.print_exc()
      answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    finished = time.process_time()
    answer |= {"cpu_seconds": finished - started, "idle_cpu_seconds": started - idle_since}
    idle_since = finished
    replies.write(json.dumps(answer) + "\n")


def racing(
  special: Mapping[str, Callable[[], Any]], usual: Callable[[], Any]
) -> dict[str, Callable[..., dict[str, Any]]]:
  """Returns the handlers "prepare", "run" and "memory" of a contestant, created by "prepare".

  Args:
    special: class for each work that has one of its own.
    usual: class for all other works. Instances have methods with the names of the handlers.
  """
  seat: list[Any] = []

  def prepare(works: list[str], **spec: Any) -> dict[str, Any]:
    seat[:] = [special.get(works[0], usual)()]
    return seat[0].prepare(works, **spec)

  return {
    "prepare": prepare,
    "run": lambda work: seat[0].run(work),
    "memory": lambda work: seat[0].memory(work),
  }


def cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def peak_rss_mib() -> float:
  """Largest resident memory of this process since it started or since `forget_peak`, in MiB."""
  with contextlib.suppress(OSError):
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) / 1024
  scale = 2**20 if sys.platform == "darwin" else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def forget_peak() -> bool:
  """Returns freed memory to the system and resets the peak; False if the system cannot do that."""
  gc.collect()
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)
  try:
    Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    return False
  return True


def measured(run: Callable[[], Any]) -> dict[str, Any]:
  """Runs once, untimed; `peak_rss_mib` is the run's, or the process's if that is unknown."""
  alone = forget_peak()
  run()
  return {"peak_rss_mib": peak_rss_mib(), "peak_of": "step" if alone else "process"}


def timed_cpu(run: Callable[[], Any]) -> float:
  """Returns the CPU seconds that `run` takes in all threads of this process."""
  started = time.process_time()
  run()
  return time.process_time() - started


def matmul_gflops(
  multiply: Callable[[], Any], size: int, repeats: int = 8, products: int = 1
) -> float:
  """Best rate of `multiply`, a blocking call of `products` products (size, size), in GFLOP/s."""
  return 2 * size**3 * products / _best_seconds(multiply, repeats) / 1e9


def copy_gbs(copy: Callable[[], Any], moved: int, repeats: int = 8) -> float:
  """Best rate of `copy`, a blocking call that reads and writes `moved` bytes in all, in GB/s."""
  return moved / _best_seconds(copy, repeats) / 1e9


def _best_seconds(run: Callable[[], Any], repeats: int) -> float:
  run()
  best = float("inf")
  for _ in range(repeats):
    started = time.perf_counter()
    run()
    best = min(best, time.perf_counter() - started)
  return best


def _die_with_parent() -> None:
  """Linux: ends the worker with the benchmark, even in the middle of a compilation."""
  parent_death_signal = 1
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
