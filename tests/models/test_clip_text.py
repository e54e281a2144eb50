"""What the values of test_sd_goldens.py and the tables of test_published.py do not say."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models.clip_text import (
  CLIPText,
  CLIPTextConfig,
  CLIPTextProjected,
  end_of_prompt,
)

TINY = CLIPTextConfig(
  vocab_size=20,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  max_position_embeddings=6,
)
TOKEN_IDS = np.array([[0, 3, 5, 7, 1, 1], [0, 3, 5, 9, 1, 1]])


@pytest.fixture(scope="module")
def params():
  return jax.jit(CLIPText(TINY).init)(jax.random.key(0), TOKEN_IDS)["params"]


@pytest.fixture(scope="module")
def encode():
  return jax.jit(CLIPText(TINY).apply)


def test_tokens_see_the_past_alone(params, encode):
  first, second = np.asarray(encode({"params": params}, TOKEN_IDS))
  np.testing.assert_array_equal(first[:3], second[:3])
  assert (np.abs(first[3:] - second[3:]).max(1) > 1e-4).all()
  # Position counts: the same token, the same past but one.
  assert np.abs(first[4] - first[5]).max() > 1e-4


def test_shorter_prompts_and_types(params, encode):
  whole = encode({"params": params}, TOKEN_IDS)
  narrow = jax.jit(CLIPText(TINY, dtype=jnp.bfloat16).apply)
  half = narrow({"params": params}, TOKEN_IDS[:, :4])
  assert half.dtype == whole.dtype == jnp.float32
  error = np.abs(half - whole[:, :4]).max()
  assert 1e-4 < error < 0.1


def test_logits_of_bfloat16_are_float32(params):
  """2 texts of 6 tokens, 2 heads."""
  model = CLIPText(TINY, dtype=jnp.bfloat16)
  text = jax.jit(model.apply).lower({"params": params}, TOKEN_IDS).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  made = [line.rpartition("tensor<")[2].partition(">")[0] for line in products]
  assert {each for each in made if each.startswith("2x2x6x6")} == {"2x2x6x6xf32"}


def test_gradient_for_embeddings_is_finite_and_causal(params):
  table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
  model = CLIPText(TINY, remat=True)

  def third(embeds):
    return (model.apply({"params": params}, None, inputs_embeds=embeds)[:, 2] ** 3).sum()

  gradient = np.asarray(jax.jit(jax.grad(third))(table[TOKEN_IDS]))
  assert np.isfinite(gradient).all() and not gradient[:, 3:].any()
  assert (np.abs(gradient[:, :3]).max(-1) > 0).all()


def test_ids_outside_of_the_table_are_not_some_other_word(params, encode):
  output = np.asarray(encode({"params": params}, np.where(TOKEN_IDS == 9, 20, TOKEN_IDS)))
  assert np.isnan(output[1, 3]).all() and np.isfinite(output[0]).all()


def test_the_layer_before_the_last(params, encode):
  """It is what an encoder of one layer less has before its final norm."""
  model = CLIPText(TINY, penultimate=True)
  found = np.asarray(jax.jit(model.apply)({"params": params}, TOKEN_IDS))
  fewer = CLIPText(dataclasses.replace(TINY, num_hidden_layers=1))
  normed = np.asarray(jax.jit(fewer.apply)({"params": params}, TOKEN_IDS))
  centred = found - found.mean(-1, keepdims=True)
  scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(centred / scale, normed, rtol=1e-4, atol=1e-5)
  assert np.abs(found - encode({"params": params}, TOKEN_IDS)).max() > 0.1


def test_the_projected_end_of_a_prompt(params, encode):
  config = dataclasses.replace(TINY, projection_dim=3, eos_token_id=7)
  kernel = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  both = params | {"text_projection": {"kernel": kernel}}
  ids = np.array([[0, 3, 7, 7, 1, 1], [0, 7, 9, 1, 1, 1]])
  states, pooled = jax.jit(CLIPTextProjected(config).apply)({"params": both}, ids)
  last = np.asarray(encode({"params": params}, ids))
  np.testing.assert_allclose(pooled, last[[0, 1], [2, 1]] @ kernel, rtol=1e-4, atol=1e-6)
  assert states.shape == (2, 6, 8) and pooled.dtype == states.dtype == jnp.float32
  # The wrong id of older configs stands for the largest one.
  legacy = dataclasses.replace(config, eos_token_id=2)
  assert end_of_prompt(legacy, jnp.asarray(ids)).tolist() == [2, 2]


def test_wrong_calls_are_named(params):
  model = CLIPText(TINY)
  with pytest.raises(ValueError, match="either"):
    model.apply({"params": params}, None)
  with pytest.raises(ValueError, match="either"):
    model.apply({"params": params}, TOKEN_IDS, inputs_embeds=jnp.zeros((2, 6, 8)))
  with pytest.raises(ValueError, match="7 tokens"):
    model.apply({"params": params}, jnp.zeros((1, 7), jnp.int32))


def test_config_round_trip_and_transformers_defaults():
  assert CLIPTextConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY
  partial = CLIPTextConfig.from_dict({"num_hidden_layers": 23})
  assert partial.hidden_size == 512 and partial.num_attention_heads == 8


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ({"model_type": "clip"}, "model_type='clip'"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"num_attention_heads": 7}, "7 heads"),
    ({"num_attention_heads": 0}, "0 heads"),
  ],
)
def test_unsupported_configs_are_named(fields, named):
  with pytest.raises(ConfigError) as caught:
    CLIPTextConfig.from_dict(fields)
  assert named in str(caught.value)
