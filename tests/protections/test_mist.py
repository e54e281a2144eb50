"""Mist: the sum of its two kinds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.rounds import build, deltas
from udp_jax.errors import ConfigError


def test_mist_is_the_sum_of_its_two_kinds(latent_model):
  def moves(**options):
    return np.diff(deltas(build("mist", latent_model, start="zero", **options), 1), axis=0)[0]

  textural = moves(kind="textural")
  fused = {rate: moves(kind="fused", rate=rate) for rate in (0.0, 1e9)}
  np.testing.assert_array_equal(fused[0.0] != 0, textural != 0)
  # Latents are drawn with other keys, which turns those that are near the target.
  assert (np.sign(fused[0.0]) == np.sign(textural)).mean() > 0.85
  assert (np.sign(fused[1e9]) != np.sign(textural)).mean() > 0.2
  with pytest.raises(ConfigError, match="mist: unknown kind 'both'; known: semantic, textural"):
    build("mist", latent_model, kind="both")


def test_semantic_mist_is_advdm(latent_model):
  mist = deltas(build("mist", latent_model, kind="semantic"), 2)
  np.testing.assert_array_equal(mist, deltas(build("advdm", latent_model), 2))
