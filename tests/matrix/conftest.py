"""A small matrix: random tiny models, a handful of pictures, few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from experiments.configs import matrix as building
from udp_jax.models import features


def _means(params: Any, images: Any) -> Any:
  """Mean colours of the quarters of a picture, in place of a network."""
  del params
  size = images.shape[1] // 2
  quarters = images.reshape(len(images), 2, size, 2, size, 3)
  return quarters.mean(axis=(2, 4)).reshape(len(images), -1).astype(jnp.float32)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
  """Features without the half minute of compilation of a real network."""
  extractor = features.FeatureExtractor("means", "FD-means", {}, _means, 12, "test")
  monkeypatch.setattr(features, "load", lambda name, weights=None: extractor)


def small(model: Path) -> Any:
  """A config of 4 pictures, two rows, two purifiers and an edit."""
  config = building.matrix("A small matrix", model=str(model))
  config.data.update({"source": "builtin", "limit": 8, "holdout": 2.0})
  config.rows = ("random_noise",)
  config.purifiers.jpeg = {"quality": 30}
  config.use_purifiers = ("jpeg",)
  config.threats.img2img = {"strength": 0.5, "sample_steps": 4, "guidance_scale": 1.0}
  config.use_threats = ("img2img",)
  config.evaluation.update({"loss_draws": 2, "bootstrap": 50})
  config.performance.sample_batch_size = 4
  return config
