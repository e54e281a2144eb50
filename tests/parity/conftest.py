"""Live comparison with PyTorch diffusers: `make parity`, in a virtual environment of its own.

Without PyTorch nothing here is collected; the ordinary tests use the values in tests/goldens.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

MISSING = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

if not MISSING:
  # The architectures and the random weights are those of the goldens.
  sys.path.insert(0, str(Path(__file__).parents[1] / "goldens"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  # diffusers' solver puts a tensor into a NumPy array, in a way that NumPy 2 deprecates.
  ignored = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
  for item in items:
    if Path(__file__).parent in item.path.parents:
      item.add_marker(ignored)


def pytest_terminal_summary(terminalreporter) -> None:
  if MISSING:
    missing = " and ".join(MISSING)
    terminalreporter.write_line(f"tests/parity left out ({missing} not installed): `make parity`")
    return
  import diffusers
  import torch

  terminalreporter.write_line(
    f"compared with diffusers {diffusers.__version__}, torch {torch.__version__}"
  )
