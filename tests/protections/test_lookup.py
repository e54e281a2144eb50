"""Protections by name, in 8-bit levels."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.protections.rounds import KEY, PICTURES
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.protections import lookup

HELPERS = {"__init__", "adaptive", "base", "constraints", "ensembles", "lookup", "maxmin",
           "options", "spectrum", "surrogates", "targets"}  # fmt: skip


def test_every_module_of_a_method_is_found() -> None:
  files = {path.stem for path in Path(protections.__file__).parent.glob("*.py")}
  assert set(lookup.available()) == files - HELPERS
  assert set(lookup.CONTROLS) < set(lookup.available())


def test_levels_become_the_unit_scale(gaussian_model) -> None:
  data = batches.make_batches(PICTURES, 3)
  options = {"distribution": "sign"}
  deltas = [
    jax.jit(lookup.build("random_noise", gaussian_model, options | radius).init)(KEY, data, None)
    for radius in ({"radius_255": 8}, {"radius": 8 / 255})
  ]
  first, second = (np.asarray(state.delta) for state in deltas)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_allclose(np.abs(first), 8 / 255, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("nope", {}, "unknown protection 'nope'; known: ace, ace_plus"),
    ("base", {"radius": 1}, "unknown protection 'base'"),
    ("advdm", {"radius_255": 8, "step_size": 1, "typo": 2}, "advdm has no option 'typo'"),
    ("advdm", {"radius_255": 8}, "step_size"),
  ],
)
def test_what_cannot_be_built(name: str, options: dict, message: str, gaussian_model) -> None:
  with pytest.raises(ConfigError, match=message):
    lookup.build(name, gaussian_model, options)
