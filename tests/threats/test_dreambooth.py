"""DreamBooth: what it trains, what of the class it weighs, and what it saves."""

from __future__ import annotations

import pytest

from tests.threats.parts import changed, params, text_model
from udp_jax import threats
from udp_jax.errors import ConfigError
from udp_jax.threats import dreambooth

OPTIONS = {"train_steps": 1, "sample_steps": 2}


@pytest.mark.parametrize(
  ("options", "reached", "file"),
  [
    ({}, {"unet/block/attn2", "unet/block/conv"}, False),
    ({"rank": 2}, {"unet/block/attn2"}, True),
    ({"rank": 2, "targets": ("to_k",)}, {"unet/block/attn2"}, True),
  ],
)
def test_weights_or_low_rank_updates(
  options, reached: set[str], file: bool, gaussian_model
) -> None:
  threat = threats.build("dreambooth", text_model(gaussian_model), OPTIONS | options)
  paths = changed(threat, params())
  assert {"/".join(path.split("/")[:3]) for path in paths} == reached
  if "targets" in options:
    assert {path.split("/")[-2] for path in paths} == {"to_k"}
  assert (threat.save is not None) == file
  assert threat.prior_weight == 1.0 and not threat.needs_token_ids


def test_the_text_encoder_is_trained_if_asked(gaussian_model) -> None:
  model = text_model(gaussian_model)
  for rank in (0, 2):
    given = OPTIONS | {"rank": rank, "train_text_encoder": True}
    threat = threats.build("dreambooth", model, given)
    assert {path.split("/")[0] for path in changed(threat, params())} == {"unet", "text_encoder"}
    assert threat.needs_token_ids


def test_the_class_weighs_at_least_nothing(gaussian_model) -> None:
  model = text_model(gaussian_model)
  threat = threats.build("dreambooth", model, OPTIONS | {"prior_weight": 0.0})
  assert threat.prior_weight == 0.0
  with pytest.raises(ConfigError, match="prior_weight is -1.0; it must be at least 0"):
    threats.build("dreambooth", model, OPTIONS | {"prior_weight": -1.0})


@pytest.mark.parametrize(
  ("options", "rate"),
  [
    ({}, 5e-6),
    ({"train_text_encoder": True}, 2e-6),
    ({"rank": 2}, 1e-4),
    ({"rank": 2, "learning_rate": 3e-4}, 3e-4),
  ],
)
def test_the_learning_rate_is_the_published_one_of_what_is_trained(
  options, rate: float, gaussian_model, monkeypatch: pytest.MonkeyPatch
) -> None:
  taken, fine_tune = [], dreambooth.fine_tune

  def spy(*args, training, **more):
    taken.append(training)
    return fine_tune(*args, training=training, **more)

  monkeypatch.setattr(dreambooth, "fine_tune", spy)
  threats.build("dreambooth", text_model(gaussian_model), OPTIONS | options)
  assert [training.learning_rate for training in taken] == [rate]
