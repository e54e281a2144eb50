"""Writes the tests' Stable Diffusion, of 16x16 pictures, to a folder."""

from __future__ import annotations

import sys
from pathlib import Path


def write(folder: Path) -> None:
  """Writes the model, the same bytes at every call."""
  from tests import conftest
  from udp_jax.models import pipeline

  pipeline.save_pipeline_folder(folder, conftest._tiny_pipeline())


if __name__ == "__main__":
  write(Path(sys.argv[1]))
