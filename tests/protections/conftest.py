"""Strict ranks and types, but for what is inside of networks; fixtures that several files share."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.protections.controls import RADIUS_255
from tests.protections.fine_tuned import DATA, KEY, PARAMS, prior_of, surrogate_of
from tests.strict import lenient, lenient_model, strictly

strict = pytest.fixture(strictly, autouse=True, scope="module")


@pytest.fixture(scope="session")
def tiny_model(tiny_model):
  """A real U-Net, as everywhere."""
  return tiny_model._replace(model=lenient_model(tiny_model.model))


@pytest.fixture(scope="session")
def tiny_pipeline(make_tiny_pipeline):
  """A pipeline of real networks, as everywhere."""
  with lenient():
    made = make_tiny_pipeline()
  return made._replace(model=lenient_model(made.model))


@pytest.fixture(scope="session")
def tiny_sdxl(make_tiny_sdxl):
  """The same of Stable Diffusion XL."""
  with lenient():
    made = make_tiny_sdxl()
  return made._replace(model=lenient_model(made.model))


@pytest.fixture(scope="module")
def grey():
  """Pictures that no budget pushes out of range, and some protected by a method of structure."""
  generator = np.random.default_rng(0)
  clean = generator.integers(60, 190, (10, 8, 8, 3)).astype(np.uint8)
  strength = np.arange(10)[:, None, None, None] % (RADIUS_255 + 1)
  stripes = np.where(np.arange(8) % 2, 1, -1)[:, None] * np.ones(3, int)
  return clean, (clean + strength * stripes).astype(np.uint8)


@pytest.fixture(scope="module")
def surrogate(gaussian_model):
  return surrogate_of(gaussian_model)


@pytest.fixture(scope="module")
def beside_class(gaussian_model):
  """A surrogate that is trained beside the class."""
  return surrogate_of(gaussian_model, prior=prior_of(gaussian_model))


@pytest.fixture(scope="module")
def class_images(beside_class):
  """They do not depend on what the surrogate does with them, nor on the pictures."""
  return jax.jit(beside_class.class_images)(KEY, DATA, PARAMS)
