"""Threats by name: those that train, those that edit, and the model that they start from."""

from __future__ import annotations

import pytest

from udp_jax import registry
from udp_jax.errors import ConfigError
from udp_jax.threats import base

EDITS = {"img2img", "inpaint"}


def test_kinds_are_told_apart(gaussian_model) -> None:
  for name in sorted(EDITS):
    assert isinstance(base.build_edit(name, gaussian_model, {"sample_steps": 2}), base.Edit)
    with pytest.raises(ConfigError, match=f"threat {name} edits pictures and trains nothing"):
      base.build(name, gaussian_model, {"sample_steps": 2})
  made = base.build("scratch", gaussian_model, {"train_steps": 1, "sample_steps": 2})
  assert isinstance(made, base.Threat) and made.train_steps == 1
  with pytest.raises(ConfigError, match="threat scratch trains a model and edits no pictures"):
    base.build_edit("scratch", gaussian_model, {"train_steps": 1, "sample_steps": 2})
  assert EDITS < set(registry.available("udp_jax.threats"))


def test_unknown_names_and_options(gaussian_model) -> None:
  with pytest.raises(ConfigError, match="unknown threat 'nope'; known: dreambooth, full"):
    base.build("nope", gaussian_model, {})
  with pytest.raises(ConfigError, match="threat scratch has no option 'typo'"):
    base.build("scratch", gaussian_model, {"typo": 1})


def test_fine_tuning_starts_from_something() -> None:
  params = {"a": 1}
  assert base.frozen_params(params) is params
  with pytest.raises(ConfigError, match="fine-tuning starts from a trained model: give one"):
    base.frozen_params(None)
