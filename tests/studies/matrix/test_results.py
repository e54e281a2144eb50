"""Commands that make a cell again, and the pictures that are no independent draws."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from udp_jax.data.image_set import ImageSet
from udp_jax.metrics import style
from udp_jax.studies.matrix import catalogue, measuring, results
from udp_jax.studies.matrix.plan import Cell


def test_commands_that_reproduce() -> None:
  command = "python -m experiments.impress --config=demo --workdir w --rows=a,b --config.seed=3"
  assert results.reproducing(command) == (
    "python -m experiments.impress --config=demo --rows=a,b --config.seed=3 --workdir=WORKDIR"
  )
  assert results.reproducing(command, Cell("eudp", "jpeg", "lora", 1)) == (
    "python -m experiments.impress --config=demo --config.seed=3 --rows=eudp --purifiers=jpeg "
    "--threats=lora --workdir=WORKDIR"
  )
  assert results.reproducing("") == ""


def _grouped(groups: list[int], **fields: Any) -> ImageSet:
  images = np.zeros((len(groups), 2, 2, 3), np.uint8)
  return ImageSet(images, [str(n) for n in range(len(groups))], groups=np.array(groups), **fields)


def test_groups_are_those_of_the_pictures_that_a_metric_measures() -> None:
  finished: Any = types.SimpleNamespace(clean=_grouped([0, 0, 1]), holdout=_grouped([7, 8]))
  expected = {
    ("pictures", "perceptual"): [0, 0, 1],
    ("edits", "ssim"): [0, 0, 1],
    ("samples", "loss_clean"): [0, 0, 1],
    ("samples", "loss_holdout"): [7, 8],
  }
  for place, groups in expected.items():
    np.testing.assert_array_equal(results._groups(finished, *place), groups)
  assert results._groups(finished, "samples", "nearest_clean") is None


def test_windows_narrow_no_interval() -> None:
  """Eight windows of each of four pictures: the interval is that of four values."""
  [metric] = [m for m in catalogue.metrics("LPIPS", "FID", 16)["pictures"] if m.key == "ssim"]
  values = np.array([0.5, 0.7, 0.6, 0.9])
  records = [{"values": {"ssim": np.repeat(values, 8).tolist()}, "scalars": {}}]
  groups = np.repeat(np.arange(4), 8)
  found, plain = (results._summary(records, metric, False, g) for g in (groups, None))
  reach, narrow = (np.diff(entry["interval"])[0] for entry in (found, plain))
  assert found["mean"] == pytest.approx(values.mean()) and found["count"] == 32
  assert reach > 3 * narrow


def test_the_style_classifier_knows_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
  given: dict[str, Any] = {}
  monkeypatch.setattr(style, "fit", lambda *_, **options: given.update(options))
  clean = _grouped([3, 3, 5], labels=np.array([0, 0, 1]))
  measures: Any = types.SimpleNamespace(
    _clean=clean, _holdout=_grouped([9]), extractor=0, _real=(0, 0), _seed=0
  )
  measuring.Measures._classifier.func(measures)  # type: ignore[attr-defined]
  np.testing.assert_array_equal(given["groups"], [3, 3, 5])
