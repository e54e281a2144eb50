"""Full fine-tuning: all of the U-Net, and the text encoder where it is asked for."""

from __future__ import annotations

import pytest

from tests.threats.parts import changed, params, text_model
from udp_jax import threats
from udp_jax.errors import ConfigError

OPTIONS = {"train_steps": 1, "sample_steps": 2}


@pytest.mark.parametrize("text", [False, True])
def test_what_is_trained(text: bool, gaussian_model) -> None:
  model = text_model(gaussian_model)
  threat = threats.build("full", model, OPTIONS | {"train_text_encoder": text})
  parts = {path.split("/")[0] for path in changed(threat, params())}
  assert parts == ({"unet", "text_encoder"} if text else {"unet"})
  assert threat.needs_token_ids == text and threat.needs_params
  # The whole model is saved, by whoever has the rest of it.
  assert threat.save is None and threat.prior_weight == 0.0


def test_more_steps_than_the_schedule_has(gaussian_model) -> None:
  with pytest.raises(ConfigError, match="sample_steps"):
    threats.build("full", gaussian_model, {"train_steps": 1, "sample_steps": 51})
