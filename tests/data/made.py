"""Pictures and folders like those that people and runs leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udp_jax.data import manifest

ROOT = Path(__file__).resolve().parents[2]


def save_picture(path: Path, seed: int = 0) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def finished_folder(place: Path, record: dict[str, Any] | None = None, names=("a", "b")) -> Path:
  pixels = np.random.default_rng(0).integers(0, 256, (len(names), 8, 9, 3), dtype=np.uint8)
  manifest.write_folder(place, pixels, names, record=record or {"method": "x"})
  return place
