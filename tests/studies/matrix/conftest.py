"""A small matrix: random tiny models, a handful of pictures, few steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from experiments.configs import matrix as building
from udp_jax.metrics import denoising, latents
from udp_jax.models import features, pipeline
from udp_jax.studies.matrix import threatening
from udp_jax.threats import img2img


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


@pytest.fixture(scope="package")
def _made() -> dict[Any, Any]:
  return {}


@pytest.fixture(autouse=True)
def traced_once(
  _made: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, built_once: None, photographs_once: None
) -> None:
  """One model and one set of jitted functions for all runs; each run would trace its own.

  What is shared knows no pictures and no run: a model, and functions of parameters and pictures.
  """

  def share(owner: Any, name: str) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def shared(*args: Any, **options: Any) -> Any:
      key = (name, *map(_identity, args), *((k, _identity(options[k])) for k in sorted(options)))
      if key not in _made:
        # With the arguments: an identity is theirs for as long as they live.
        _made[key] = function(*args, **options), args, options
      return _made[key][0]

    monkeypatch.setattr(owner, name, shared)

  share(pipeline, "load_pipeline")
  share(pipeline, "build_model")
  share(denoising, "DenoisingLoss")
  share(latents, "Latents")
  share(img2img, "img2img")
  share(threatening, "_edited")


def _identity(value: Any) -> Any:
  """What tells arguments apart: the text of what is written in a config, else the object itself."""
  if isinstance(value, ConfigDict):
    return value.to_json_best_effort()
  return repr(value) if isinstance(value, str | int | float | Path | None) else id(value)


def small(model: Path) -> Any:
  """A config of 4 pictures, two rows, two purifiers and an edit."""
  config = building.matrix("A small matrix", model=str(model))
  config.data.update({"source": "builtin", "limit": 8, "holdout": 2.0})
  config.rows = ("random_noise",)
  config.purifiers.jpeg = {"quality": 30}
  config.use_purifiers = ("jpeg",)
  config.threats.img2img = {"strength": 0.5, "sample_steps": 4, "guidance_scale": 1.0}
  config.use_threats = ("img2img",)
  config.evaluation.update({"loss_draws": 2})
  # LPIPS would take these small pictures, and a while.
  config.evaluation.perceptual = "effnet_lite0_distance"
  config.performance.sample_batch_size = 4
  return config
