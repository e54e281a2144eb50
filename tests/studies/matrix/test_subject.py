"""The model of a matrix, and what it is told of the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.studies.matrix.conftest import small
from udp_jax.data import image_set
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.studies.matrix import subject

PICTURES = image_set.ImageSet(
  np.zeros((3, 4, 4, 3), np.uint8),
  ["a", "b", "c"],
  labels=np.array([1, 0, 1], np.int32),
  origin={"classes": ["cat", "sea"]},
)


def test_prompts_name_the_class_of_each_picture() -> None:
  asked = "a photo of a {label}, {label}"
  assert subject.asks_for_labels(asked) and not subject.asks_for_labels("a photo")
  sea, cat = "a photo of a sea, sea", "a photo of a cat, cat"
  assert subject.texts_of(asked, PICTURES) == [sea, cat, sea]
  assert subject.texts_of_classes(asked, PICTURES) == [cat, sea]
  assert subject.texts_of("a photo", PICTURES) == 3 * ["a photo"]
  assert subject.texts_of_classes("a photo", PICTURES) == []


@pytest.mark.parametrize("changes", [{"labels": None}, {"origin": {}}])
def test_classes_that_pictures_do_not_have(changes: dict) -> None:
  with pytest.raises(ConfigError, match="names classes, but the pictures have none"):
    subject.texts_of("a {label}", PICTURES._replace(**changes))


def test_a_pixel_model_measures_itself_and_has_no_prompts(tiny_model, tmp_path) -> None:
  factory.save(tmp_path / "ddpm", tiny_model.model, tiny_model.config, tiny_model.params)
  found, config = subject.load(small(tmp_path / "ddpm"))
  assert found.measuring is found.model and not found.is_latent
  assert "uncond_ids" not in config.model
  with pytest.raises(AttributeError, match="locked|mutate|immutable|frozen|Frozen"):
    config.seed = 3


def test_a_latent_model_measures_by_its_mean(tiny_pipeline_folder, tiny_pipeline) -> None:
  found, config = subject.load(small(tiny_pipeline_folder))
  empty = tuple(np.asarray(tiny_pipeline.tokenizer([""]))[0])
  assert tuple(config.model.uncond_ids) == empty
  assert found.measuring is not found.model and found.is_latent


def test_a_matrix_needs_a_model() -> None:
  with pytest.raises(ConfigError, match="the matrix needs a trained model"):
    subject.load(small(""))
