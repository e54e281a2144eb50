"""Purified pictures of a row: the codec's, kept, and grey where the file was grey."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.studies.matrix.conftest import small
from udp_jax import purifiers
from udp_jax.data import image_set, manifest
from udp_jax.errors import ConfigError
from udp_jax.models import toy
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.runtime import mesh
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import purifying
from udp_jax.studies.matrix.plan import Cell

CELL = Cell("eudp", "jpeg")


@pytest.fixture
def study(gaussian_model, tmp_path: Path) -> Study:
  config = small(tmp_path / "no_model")
  config.prompt = ""
  return Study(config, tmp_path / "run", Model(gaussian_model), mesh.make_mesh(), progress=False)


@pytest.fixture
def clean(pictures: np.ndarray) -> image_set.ImageSet:
  found = image_set.ImageSet(pictures[:5], [f"p{i}" for i in range(5)])
  return image_set.finish(found, "a test")


def _through_pillow(pixels: np.ndarray, quality: int) -> np.ndarray:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
  return np.asarray(Image.open(buffer))


def test_a_purifier_of_the_config_makes_the_pictures_once(study: Study, clean) -> None:
  made = purifying.PurifiedCells(study, "jpeg", clean).make(CELL, clean.images)
  expected = [_through_pillow(image, 30) for image in clean.images]
  np.testing.assert_array_equal(made, expected)
  folder = study.workdir / "purified" / "eudp" / "jpeg" / "pictures"
  record = manifest.read_manifest(folder)
  assert (record["method"], record["options"]) == ("jpeg", {"quality": 30})
  assert (record["row"], record["purifier"]) == ("eudp", "jpeg")
  # What is there is read, whatever it would be made of now.
  again = purifying.PurifiedCells(study, "jpeg", clean).make(CELL, 255 - clean.images)
  np.testing.assert_array_equal(again, expected)
  np.testing.assert_array_equal(purifying.read(CELL, study.workdir), expected)


def test_diffpure_with_a_prior_of_its_own(study: Study, clean, tiny_model) -> None:
  study.config.purifiers.diffpure = {"timestep": 3}
  study.config.purifier_model.path = "/models/faces"
  prior = Model(tiny_model.model, tiny_model.params)
  cell = Cell("eudp", "diffpure")
  cells = purifying.PurifiedCells(study, "diffpure", clean, prior)
  made = cells.make(cell, clean.images)
  method = purifiers.build("diffpure", tiny_model.model, {"timestep": 3})
  key = stream(jax.random.key(study.config.seed), "purify/diffpure")
  expected = purifiers.purify(
    method, tiny_model.params, key, clean.images, range(5), purifiers.Batching(4)
  )
  np.testing.assert_array_equal(made, expected)
  record = manifest.read_manifest(study.workdir / "purified" / "eudp" / "diffpure" / "pictures")
  assert record["purifier_model"] == "faces"
  # Filters have no prior.
  purifying.PurifiedCells(study, "jpeg", clean, prior).make(CELL, clean.images)
  record = manifest.read_manifest(study.workdir / "purified" / "eudp" / "jpeg" / "pictures")
  assert "purifier_model" not in record


def test_a_prior_of_another_size_is_refused_at_once(study: Study, clean) -> None:
  study.config.purifiers.diffpure = {"timestep": 3}
  other = toy.on_pixels()
  clean = clean._replace(images=clean.images.repeat(2, axis=1).repeat(2, axis=2))
  assert other.image_shape != clean.images.shape[1:]
  with pytest.raises(ConfigError, match="16x16 do not fit diffpure with a model of 8x8"):
    purifying.PurifiedCells(study, "diffpure", clean, Model(other, other.init(jax.random.key(0))))


def test_none_leaves_pictures_as_they_are(study: Study, clean) -> None:
  made = purifying.PurifiedCells(study, "none", clean).make(Cell("eudp", "none"), clean.images)
  assert made is clean.images and not study.workdir.exists()


def test_pictures_of_grey_files_stay_grey(study: Study, clean) -> None:
  images = clean.images.copy()
  images[0] = images[0, ..., :1]
  metadata = [image_set.Metadata(name) for name in clean.names]
  some = clean._replace(images=images, metadata=metadata)
  study.config.purifiers.jpeg = {"method": "gaussian_noise", "std_255": 20.0}
  made = purifying.PurifiedCells(study, "jpeg", some).make(CELL, images)
  assert (made[0] == made[0, ..., :1]).all() and (made[0] != images[0]).any()
  assert not (made[1] == made[1, ..., :1]).all()
