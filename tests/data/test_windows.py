"""Windows of large pictures: sizes, places, and what is held out together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from udp_jax.data import image_set, images, sources, windows
from udp_jax.errors import ConfigError


@pytest.fixture
def paintings(tmp_path: Path) -> Path:
  """Three pictures, each of one grey level, by two artists."""
  for number, name in enumerate(("monet/a", "monet/b", "degas/c")):
    path = tmp_path / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    images.write_png(path, np.full((150 + number, 130, 3), 50 * number + 20, np.uint8))
  return tmp_path


def test_whole_pictures_are_held_out(paintings: Path) -> None:
  found = sources.load(f"windows:{paintings}", image_size=16)
  assert found.images.shape == (96, 16, 16, 3) and len(set(found.names)) == 96
  assert found.origin["classes"] == ["degas", "monet"]
  train, held = image_set.split(found, holdout=32, seed=0)
  levels = [set(np.unique(part.images).tolist()) for part in (train, held)]
  assert len(levels[1]) == 1 and not levels[0] & levels[1]


def test_the_seed_chooses_the_windows_and_a_limit_counts_them(paintings: Path) -> None:
  gradient = np.broadcast_to(np.arange(130, dtype=np.uint8)[:, None], (150, 130, 3))
  images.write_png(paintings / "monet" / "a.png", gradient)
  first, again, other = (
    sources.load(f"windows:{paintings}", image_size=8, limit=40, seed=seed, classes=("monet",))
    for seed in (0, 0, 1)
  )
  assert len(first.images) == 40 and np.array_equal(first.images, again.images)
  assert not np.array_equal(first.images, other.images)


def test_windows_need_a_size(paintings: Path) -> None:
  with pytest.raises(ConfigError, match="image_size"):
    sources.load(f"windows:{paintings}")


def test_windows_are_squares_of_the_picture_and_lie_everywhere() -> None:
  ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 120, 3))
  found = windows.cut(np.random.default_rng(0), ramp, 300, 50, 50)
  first = np.array([window[0, 0, 0] for window in found], int)
  span = np.array([int(window[-1, 0, 0]) for window in found]) - first
  # A window of side s spans s - s / 50 levels between the centres of its first and last rows.
  assert span.min() >= 48 and span.max() <= 118 and span.max() > 110
  assert first.min() < 10 and (first + span).max() > 190
  assert 60 < np.median(span) < 90  # Log-uniform: the median is the root of 50 * 120, 77.
