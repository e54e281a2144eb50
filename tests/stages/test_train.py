"""The training stage on the Gaussian model: what it counts, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.trained import train_briefly
from udp_jax.errors import DivergedError
from udp_jax.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("built_once")


def test_training_counts_every_step(gaussian_model, pictures, tmp_path: Path) -> None:
  train_briefly(gaussian_model, pictures, tmp_path)
  records = read_metrics(tmp_path / "metrics.jsonl")
  assert [record["position"] for record in records] == [3, 6, 7]
  assert all(record["images_per_s"] > 0 for record in records)


def test_diverged_training_is_said_in_one_line(gaussian_model, pictures, tmp_path: Path) -> None:
  with pytest.raises(DivergedError, match=r"^train: \w+ is (nan|inf) at step \d of 7; lower the"):
    train_briefly(gaussian_model, pictures, tmp_path, learning_rate=float("nan"))
