"""The metrics of a matrix: told apart, and read from the owner's side."""

from __future__ import annotations

import pytest

from udp_jax.metrics import given
from udp_jax.studies.matrix import catalogue

KINDS = catalogue.metrics("LPIPS-VGG", "FD-Net", 40)
# What an attacker wants to be small: the owner wants edits and samples far from the clean ones.
FLIPPED = ("perceptual", "ssim", "vif", "psnr", "rmse")


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_a_kind_are_told_apart(kind: str) -> None:
  for field in ("key", "label"):
    values = [getattr(metric, field) for metric in KINDS[kind]]
    assert len(set(values)) == len(values)
  for metric in KINDS[kind]:
    assert metric.better in ("higher", "lower", None) and metric.help.endswith(".")
    # A headline is compared with noise, which needs a side.
    assert metric.better or not metric.headline


def test_labels_name_the_networks() -> None:
  labels = {kind: {m.key: m.label for m in metrics} for kind, metrics in KINDS.items()}
  assert labels["pictures"]["perceptual"] == labels["edits"]["perceptual"] == "LPIPS-VGG"
  assert labels["edits"]["edit_shift"] == "Edit shift (LPIPS-VGG)"
  assert labels["samples"]["fd"] == "FD-Net, 40 samples"


@pytest.mark.parametrize("key", FLIPPED)
def test_a_protected_picture_is_near_and_its_edit_is_far(key: str) -> None:
  pictures, edits = (
    next(metric for metric in KINDS[kind] if metric.key == key) for kind in ("pictures", "edits")
  )
  assert {pictures.better, edits.better} == {"higher", "lower"}
  # What is visible is no effect that a purifier could take away; PSNR may be infinite.
  assert not pictures.survives and edits.survives == (key != "psnr")


def test_numbers_of_a_set_have_no_spread_that_survives() -> None:
  sets = {metric.key for metrics in KINDS.values() for metric in metrics if metric.of_set}
  assert sets == {"fd", "mmd"}
  assert not [m for metrics in KINDS.values() for m in metrics if m.of_set and m.survives]


def test_what_a_config_gives_weights_for_is_listed() -> None:
  keys = {metric.key for metrics in KINDS.values() for metric in metrics}
  assert {"clip_style", "clip_likeness", "identity", "prompt_hits"} <= keys
  assert {"clip", "face", "classifier_draws"} <= given.DEFAULTS.keys()
