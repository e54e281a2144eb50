"""Plots the loss curves of both stages (needs matplotlib, from the `eval` extra)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.runtime import files
from udp_jax.runtime.metrics_log import read_metrics


def write_losses(path: Path, runs: Mapping[str, Path]) -> None:
  """Writes a PNG with one panel per stage: loss over training steps.

  Args:
    path: file to write.
    runs: panel title -> path of its metrics.jsonl.

  Raises:
    ConfigError: matplotlib is not installed.
    OutputError: the picture cannot be written.
  """
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ConfigError("loss curves need matplotlib: pip install 'udp-jax[eval]'") from error
  figure = Figure(figsize=(3.6 * len(runs), 2.6), dpi=100, layout="constrained")
  FigureCanvasAgg(figure)
  for panel, (title, metrics) in zip(np.atleast_1d(figure.subplots(1, len(runs))), runs.items()):
    records = read_metrics(metrics)
    panel.plot([r["position"] for r in records], [r["loss"] for r in records], linewidth=0.8)
    panel.set(title=title, xlabel="step", yscale="log")
    panel.grid(which="both", linewidth=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  files.write_bytes(path, buffer.getvalue())
