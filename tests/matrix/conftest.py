"""A small matrix: random tiny models, a handful of pictures, few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.configs import matrix as building
from udp_jax.models import features


def _means(params: Any, images: Any) -> Any:
  """Mean colours of the quarters of a picture, in place of a network."""
  del params
  size = images.shape[1] // 2
  quarters = images.reshape(len(images), 2, size, 2, size, 3)
  return quarters.mean(axis=(2, 4)).reshape(len(images), -1).astype(jnp.float32)


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  """Every run makes its functions anew; what they compile to is kept for the next one."""
  names = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in names.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


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
