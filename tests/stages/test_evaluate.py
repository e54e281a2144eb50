"""Numbers of a stage, and their spread over seeds."""

from __future__ import annotations

import pytest

from udp_jax.stages import evaluate

pytestmark = pytest.mark.usefixtures("photographs_once")


def test_spread_over_seeds_leaves_out_what_has_no_meaning() -> None:
  found = evaluate.spread([{"fd": 1.0, "psnr": None}, {"fd": 3.0, "psnr": None}])
  assert found["fd"]["mean"] == 2.0 and found["fd"]["std"] == pytest.approx(2**0.5)
  assert found["psnr"]["mean"] is None
