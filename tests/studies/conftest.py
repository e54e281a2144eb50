"""Configs and pictures that the tests of studies share, and the browser of the report's tests."""

from __future__ import annotations

import pytest

from experiments import _cli
from experiments.configs import matrix as building
from tests.report.conftest import open_in_browser as open_in_browser
from udp_jax.data import image_set, sources


def set_field(config, field: str, value) -> None:
  """Sets a field of a config by its dotted name, whatever the type of its value."""
  *parents, last = field.split(".")
  for part in parents:
    config = config[part]
  with config.ignore_type():
    config[last] = value


@pytest.fixture
def config():
  """A study of built-in photographs, small."""
  return _cli.get_config("eudp", "cifar10_small:smoke")


@pytest.fixture(scope="module")
def crops(photographs_once) -> image_set.ImageSet:
  """Eight of the built-in photographs."""
  return sources.load("builtin", image_size=16, limit=8)


@pytest.fixture(scope="module")
def named_config():
  """A matrix with noise of every kind, adaptive forms, and a row with a budget of its own."""
  config = building.matrix("Names")
  config.protections.random_noise = {"distribution": "sign"}
  config.protections.mist_noise = {"method": "matched_noise", "of": "mist"}
  config.protections.mist_adaptive = {"method": "mist", "transforms": "jpeg"}
  config.protections.mist_low = {"method": "mist", "band": "gaussian", "band_sigma": 2.0}
  config.protections.strong = {"method": "mist", "radius_255": 16.0, "transforms": "jpeg"}
  config.protections.photoguard_encoder = {"decay_steps": 0}
  return config
