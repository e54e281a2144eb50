"""Theta in and out of parameters: what is trained, what is not, and that nothing starts changed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import lora, trainable

KEY = jax.random.key(0)
WIDTH, VOCABULARY = 6, 10
TEXT_TARGETS = ("q_proj",)


def _dense(inputs: int, outputs: int) -> dict:
  drawn = np.random.default_rng(inputs * outputs).normal(size=(inputs, outputs))
  return {"kernel": jnp.float32(drawn), "bias": jnp.ones(outputs)}


@pytest.fixture(scope="module")
def params() -> dict:
  """The names of a Stable Diffusion model, a few of its modules."""
  block = {
    name: {"to_q": _dense(8, 8), "to_k": _dense(WIDTH, 8), "to_v": _dense(WIDTH, 8)}
    for name in ("attn1", "attn2")
  }
  unet = {
    "attentions_0": {
      "proj_in": {"kernel": jnp.ones((1, 1, 4, 8)), "bias": jnp.zeros(8)},
      "transformer_blocks_0": block,
    }
  }
  table = jnp.arange(VOCABULARY * WIDTH, dtype=jnp.float32).reshape(VOCABULARY, WIDTH)
  text = {
    "embeddings": {"token_embedding": {"embedding": table}},
    "encoder": {"layers_0": {"self_attn": {"q_proj": _dense(WIDTH, WIDTH)}}},
  }
  return {"unet": unet, "text_encoder": {"text_model": text}, "vae": {"conv": _dense(3, 3)}}


KINDS = {
  "whole": trainable.whole(),
  "unet": trainable.part("unet"),
  "denoiser": trainable.denoiser(),
  "cross_attention": trainable.cross_attention_kv(),
  "lora": trainable.lora(2, 0.5, ("to_q", "proj_in"), text_encoder_targets=TEXT_TARGETS),
  "token": trainable.token_embedding([3], 3),
  "both": trainable.joined(trainable.part("unet"), trainable.token_embedding([3], 3)),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_taken_out_goes_back_unchanged(name: str, params: dict) -> None:
  theta = KINDS[name].init(KEY, params)
  merged = KINDS[name].merge(theta, params)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, merged, params)
  # A copy: a loop donates it.
  kept = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
  assert not kept & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(theta)}


@pytest.mark.parametrize("name", KINDS)
def test_shapes_alone_are_enough(name: str, params: dict) -> None:
  theta = KINDS[name].init(KEY, params)
  abstract = jax.eval_shape(KINDS[name].init, KEY, params)
  assert jax.tree.map(jnp.shape, theta) == jax.tree.map(lambda leaf: leaf.shape, abstract)
  merged = jax.eval_shape(KINDS[name].merge, abstract, params)
  assert jax.tree.map(lambda leaf: leaf.shape, merged) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
  ("name", "trained"),
  [
    ("unet", "unet/"),
    ("denoiser", "unet/"),
    ("cross_attention", "attn2/to_[kv]/kernel"),
    ("lora", "(attn[12]/to_q|proj_in|q_proj)/kernel"),
    ("token", "token_embedding"),
  ],
)
def test_only_its_part_changes(name: str, trained: str, params: dict) -> None:
  import re

  theta = jax.tree.map(lambda leaf: leaf + 1.0, KINDS[name].init(KEY, params))
  merged = KINDS[name].merge(theta, params)
  for (path, old), new in zip(
    jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(merged), strict=True
  ):
    place = "/".join(entry.key for entry in path)
    assert bool(np.any(old != new)) == bool(re.search(trained, place)), place


def test_the_gradient_reaches_all_of_theta_and_no_more(params: dict) -> None:
  kind = KINDS["lora"]
  theta = kind.init(KEY, params)

  @jax.jit
  def loss(theta, params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(kind.merge(theta, params)))

  gradient = jax.grad(loss)(theta, params)
  assert jax.tree.structure(gradient) == jax.tree.structure(theta)
  flat = jax.tree_util.tree_flatten_with_path(gradient)[0]
  # lora_B is zero, so lora_A has no gradient yet, and lora_B has one.
  for path, leaf in flat:
    assert bool(np.any(leaf)) == (path[-1].key == "lora_B")


def test_low_rank_updates_by_hand(params: dict) -> None:
  kind = KINDS["lora"]
  theta = jax.tree.map(lambda leaf: leaf + 0.1, kind.init(KEY, params))
  merged = kind.merge(theta, params)
  for part in ("attn1", "attn2"):
    old = params["unet"]["attentions_0"]["transformer_blocks_0"][part]["to_q"]["kernel"]
    new = merged["unet"]["attentions_0"]["transformer_blocks_0"][part]["to_q"]["kernel"]
    factors = theta["unet"]["attentions_0"]["transformer_blocks_0"][part]["to_q"]
    a, b = np.float64(factors["lora_A"]), np.float64(factors["lora_B"])
    assert a.shape == (8, 2) and b.shape == (2, 8)
    np.testing.assert_allclose(new, old + 0.5 * a @ b, rtol=1e-5, atol=1e-6)
  first, second = (
    theta["unet"]["attentions_0"]["transformer_blocks_0"][part]["to_q"]["lora_A"]
    for part in ("attn1", "attn2")
  )
  assert np.any(first != second)


def test_bfloat16_parameters_get_float32_masters(params: dict) -> None:
  held = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  for name in ("unet", "token", "lora"):
    theta = KINDS[name].init(KEY, held)
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("float32")}
  # A step that bfloat16 would swallow arrives.
  theta = KINDS["token"].init(KEY, held)
  merged = KINDS["token"].merge(theta + 1e-3, held)
  np.testing.assert_array_equal(trainable.token_table(merged)[3], theta[0] + 1e-3)


def test_new_tokens_make_the_table_longer(params: dict) -> None:
  kind = trainable.token_embedding([VOCABULARY, VOCABULARY + 1], [2, 4])
  theta = kind.init(KEY, params)
  table = trainable.token_table(kind.merge(theta, params))
  assert table.shape == (VOCABULARY + 2, WIDTH)
  np.testing.assert_array_equal(table[:VOCABULARY], trainable.token_table(params))
  np.testing.assert_array_equal(table[VOCABULARY:], table[jnp.array([2, 4])])


def test_what_cannot_be_trained(params: dict) -> None:
  with pytest.raises(ConfigError, match="no part unet/mid_block to train: unet has attentions_0"):
    trainable.part("unet", "mid_block").init(KEY, params)
  with pytest.raises(ConfigError, match="no module with a kernel is called to_z"):
    trainable.lora(2, targets=("to_q", "to_z")).init(KEY, params)
  with pytest.raises(ConfigError, match="rank of a LoRA is at least 1, not 0"):
    trainable.lora(0)
  with pytest.raises(ConfigError, match="needs one row to start from"):
    trainable.token_embedding([1, 2, 3], [1, 2])
  with pytest.raises(ConfigError, match=r"tokens \[12\] do not follow on the table's 10"):
    kind = trainable.token_embedding([12], 1)
    kind.merge(kind.init(KEY, params), params)
  with pytest.raises(ConfigError, match="token 99 has no embedding: the table has 10"):
    trainable.token_embedding([10], 99).init(KEY, params)
  with pytest.raises(ConfigError, match="Stable Diffusion XL has two text encoders"):
    trainable.token_embedding([1], 1).init(KEY, params | {"text_encoder_2": {}})
  with pytest.raises(ConfigError, match="no cross-attention"):
    trainable.cross_attention_kv().init(KEY, {"unet": {"conv": _dense(2, 2)}})


def test_defaults_are_those_of_the_training_scripts() -> None:
  assert lora.UNET_TARGETS == ("to_q", "to_k", "to_v", "to_out_0")
