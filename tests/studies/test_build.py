"""What a study's config names: pictures, sizes, and the clean reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from udp_jax.data import image_set
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import factory
from udp_jax.studies import build

pytestmark = pytest.mark.usefixtures("photographs_once")


@pytest.mark.parametrize(("holdout", "held"), [(0.25, 6), (6.0, 6), (0.0, 0)])
def test_holdout_is_a_fraction_or_a_number(holdout: float, held: int, config) -> None:
  config.data.holdout = holdout
  clean, held_out = build.load_data(config)
  assert len(held_out.images) == held
  assert not set(clean.names) & set(held_out.names)
  assert clean.images.shape[1:] == (16, 16, 3)


def test_finished_reference_is_kept(crops, tmp_path: Path) -> None:
  build.write_pictures(crops, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
  build.write_pictures(image_set.take(crops, [0]), tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


def test_sizes_are_compared_with_the_model(config, crops) -> None:
  model = factory.build(config.model, config.performance)[0]
  build.check_sizes(config, crops, model)
  wide = crops._replace(images=np.zeros((2, 16, 24, 3), np.uint8))
  with pytest.raises(ConfigError, match="the pictures are 24x16, the model is for 16x16"):
    build.check_sizes(config, wide, model)


def test_missing_source_is_missing_data(config) -> None:
  config.data.source = "folder:/nowhere"
  with pytest.raises(MissingDataError, match="/nowhere"):
    build.load_data(config)
