"""Numbers of a stage, and their spread over seeds."""

from __future__ import annotations

import pytest

from udp_jax.runtime import files
from udp_jax.stages import evaluate

pytestmark = pytest.mark.usefixtures("photographs_once")


def test_spread_over_seeds_leaves_out_what_has_no_meaning() -> None:
  found = evaluate.spread([{"fd": 1.0, "psnr": None}, {"fd": 3.0, "psnr": None}])
  assert found["fd"]["mean"] == 2.0 and found["fd"]["std"] == pytest.approx(2**0.5)
  assert found["psnr"]["mean"] is None


def test_records_of_unequal_counts_are_made_again(tmp_path) -> None:
  path = tmp_path / "evaluation.json"
  assert not evaluate.is_judged(path)
  files.write_json(path, {"fd_samples": 3.0})
  assert not evaluate.is_judged(path)
  files.write_json(path, {"fd_samples": 3.0, "compared": 300})
  assert evaluate.is_judged(path)
