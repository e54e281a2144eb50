"""What fine-tuning refuses, and in which precision it holds what it does not train."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments import _cli
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.models.context import Model
from udp_jax.studies import fine_tuning

PRESERVING = SimpleNamespace(prior_weight=1.0)


@pytest.fixture
def config():
  return _cli.get_config("train", "dreambooth_tiny_ldm:smoke")


def test_there_has_to_be_a_model_with_text(config, tiny_model, tmp_path) -> None:
  with config.unlocked():
    config.model.path = ""
  with pytest.raises(ConfigError, match="fine-tuning starts from a model: give --model=FOLDER"):
    fine_tuning.load_model(config)
  factory.save(tmp_path / "ddpm", tiny_model.model, tiny_model.config, tiny_model.params)
  config.model.path = str(tmp_path / "ddpm")
  with pytest.raises(ConfigError, match="ddpm is no text-to-image model"):
    fine_tuning.load_model(config)


def test_a_class_needs_a_prompt_and_half_of_a_batch(config) -> None:
  config.prior.prompt, config.global_batch_size = "", 4
  with pytest.raises(ConfigError, match="DreamBooth preserves a class: give --class_prompt"):
    fine_tuning._check(config, PRESERVING)
  config.prior.prompt, config.global_batch_size = "a photo", 3
  with pytest.raises(ConfigError, match="make global_batch_size even"):
    fine_tuning._check(config, PRESERVING)
  fine_tuning._check(config, SimpleNamespace(prior_weight=0.0))
  config.global_batch_size = 4
  fine_tuning._check(config, PRESERVING)


def test_a_word_that_is_learned_has_sentences_of_its_own(tiny_pipeline) -> None:
  model = Model(tiny_pipeline.model, tiny_pipeline.params, pipeline=tiny_pipeline)
  config = _cli.get_config("train", "textual_inversion_tiny_ldm:smoke")
  config.data.prompt = "a cat"
  with pytest.raises(ConfigError, match="sentences of its own: leave --prompt out"):
    fine_tuning._options(config, model)
  plain = _cli.get_config("train", "lora_tiny_ldm:smoke")
  options, sentences = fine_tuning._options(plain, model)
  assert sentences is None and options["scheduler"] == tiny_pipeline.scheduler


@pytest.mark.parametrize(
  ("adapter", "train_text", "narrow"),
  [
    (False, False, {"vae", "text_encoder"}),
    (False, True, {"vae"}),
    (True, False, {"vae", "text_encoder", "unet"}),
  ],
)
def test_what_is_not_trained_is_held_narrow(
  adapter: bool, train_text: bool, narrow: set[str], config, tiny_pipeline
) -> None:
  with config.unlocked():
    config.performance.frozen_dtype = "bfloat16"
    config.threat.options.train_text_encoder = train_text
  trainer = SimpleNamespace(save=(lambda *_: None) if adapter else None)
  found = fine_tuning._frozen(config, trainer, tiny_pipeline.params)
  dtypes = {part: {leaf.dtype for leaf in jax.tree.leaves(found[part])} for part in found}
  assert {part for part, kinds in dtypes.items() if jnp.dtype("bfloat16") in kinds} == narrow
