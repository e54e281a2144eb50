"""What threats are given: masks, and batches of their own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.studies.matrix.conftest import small
from udp_jax.data import image_set
from udp_jax.errors import ConfigError
from udp_jax.stages import train
from udp_jax.studies import build
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import subject, threatening
from udp_jax.studies.matrix.plan import Cell


def test_masks() -> None:
  centre, around = (threatening._masks(which, 2, (8, 12)) for which in ("centre", "surroundings"))
  assert centre.shape == (2, 8, 12, 1)
  assert centre[0, 2:6, 3:9].all() and centre.sum() == 2 * 4 * 6
  np.testing.assert_array_equal(centre + around, 1.0)
  with pytest.raises(ConfigError, match="unknown mask"):
    threatening._masks("hat", 1, (8, 8))


def test_a_threat_may_have_a_batch_of_its_own(
  tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config = small(tiny_pipeline_folder)
  config.threats.lora = {"train_steps": 1, "rank": 2, "batch_size": 2}
  config.threats.common = {"method": "lora", "train_steps": 1, "rank": 2}
  config.threats.dreambooth = {"train_steps": 1, "class_prompt": "a photo", "batch_size": 3}
  model, config = subject.load(config)
  study = Study(config, tmp_path, model, build.make_mesh(config), False)
  pixels = np.zeros((9, *model.model.image_shape), np.uint8)
  pictures = image_set.finish(image_set.ImageSet(pixels, list("abcdefghi")), "here")
  trained_on: list[np.ndarray] = []

  def keep(threat, data, base, run):
    trained_on.append(data.images)
    raise InterruptedError

  monkeypatch.setattr(train, "train", keep)
  for name, size in (("lora", 2), ("common", config.global_batch_size)):
    threat = threatening.build(study, name, pictures)
    assert isinstance(threat, threatening.TrainCells)
    with pytest.raises(InterruptedError):
      threat.params(Cell("clean", "none", name, 0), pixels)
    assert trained_on[-1].shape[1] == size
  with pytest.raises(ConfigError, match=r"config.threats.dreambooth: a batch of 3; .* even"):
    threatening.build(study, "dreambooth", pictures)
