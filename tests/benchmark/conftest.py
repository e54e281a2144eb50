"""Stand-in workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udp_jax.benchmark.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
  """`stand_in([0.1, 0.2])`: a worker whose runs take these seconds, or so it says."""
  workers = []

  def start(seconds: list[float] | None = None) -> Worker:
    script = Path(__file__).with_name("stand_in.py")
    command = [sys.executable, str(script), json.dumps(seconds or [1.0])]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    workers.append(Worker(command, tmp_path / f"{len(workers)}.log", {"PYTHONPATH": paths}))
    return workers[-1]

  yield start
  for worker in workers:
    worker.stop()
