"""Layers of the networks, against NumPy and XLA's own convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import random_params
from udp_jax.models import layers


def _made(layer, *inputs):
  """Parameters without zeros, and what the layer makes of the inputs."""
  params = random_params(jax.eval_shape(layer.init, jax.random.key(0), *inputs))
  return params["params"], np.asarray(jax.jit(layer.apply)(params, *inputs))


def _features(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _conv(x, kernel, bias, padding, stride=1):
  numbers = ("NHWC", "HWIO", "NHWC")
  strides = (stride, stride)
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers) + bias


@pytest.mark.parametrize(("flip", "shift", "dim"), [(False, 1, 8), (True, 0, 8), (False, 1, 7)])
def test_timesteps_are_sinusoids(flip: bool, shift: int, dim: int) -> None:
  steps = np.array([0, 3, 999])
  found = layers.timestep_embedding(jnp.asarray(steps), dim, flip_sin_to_cos=flip, freq_shift=shift)
  half = dim // 2
  angles = steps[:, None] * 10000.0 ** (-np.arange(half) / (half - shift))
  parts = [np.sin(angles), np.cos(angles)]
  expected = np.zeros((3, dim))
  expected[:, : 2 * half] = np.concatenate(parts[::-1] if flip else parts, axis=1)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_block_of_attention_by_numpy() -> None:
  x = _features(2, 3, 3, 4)
  layer = layers.AttentionBlock(num_groups=2, epsilon=1e-5, head_dim=2)
  params, found = _made(layer, x)
  groups = x.reshape(2, 9, 2, 2).astype(np.float64)
  mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
  normed = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(2, 9, 4)
  norm = params["group_norm"]
  normed = normed * norm["scale"] + norm["bias"]
  query, key, value = (
    (normed @ params[name]["kernel"] + params[name]["bias"]).reshape(2, 9, 2, 2)
    for name in ("to_q", "to_k", "to_v")
  )
  scores = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(2))
  mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), value)
  out = mixed.reshape(2, 9, 4) @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"]
  np.testing.assert_allclose(found, x + out.reshape(x.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wide", [True, False])
def test_one_product_or_three(wide: bool) -> None:
  """Of query, key and value: the same parameters, values and gradients."""
  with jax.enable_x64(True):
    x = _features(2, 3, 3, 4).astype(np.float64)
    method = "direct" if wide else "xla"
    fused = layers.AttentionBlock(num_groups=2, epsilon=1e-5, head_dim=2, method=method)
    apart = fused.clone(fused=False)
    shapes = jax.eval_shape(fused.init, jax.random.key(0), x)
    assert jax.eval_shape(apart.init, jax.random.key(0), x) == shapes
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), random_params(shapes))

    def results(layer):
      loss = lambda *given: jnp.sum(jnp.square(layer.apply(*given)))
      return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    found = [jax.tree.leaves(results(layer)) for layer in (fused, apart)]
    for one, other in zip(*found, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_method_decides_about_every_product() -> None:
  """Not the machine that compiles: narrow products return bfloat16, wide ones float32."""
  x, temb = jnp.ones((1, 4, 4, 8), jnp.bfloat16), jnp.ones((1, 16), jnp.bfloat16)
  block = layers.ResnetBlock(8, num_groups=2, epsilon=1e-5)
  embed = layers.TimeEmbedding(16, jnp.bfloat16)
  for method, dtype in (("direct", "f32"), ("xla", "bf16")):
    wide = layers.wide_products(method)
    for layer, given in (
      (block.clone(method=method), (x, temb)),
      (embed.clone(wide=wide), (temb,)),
    ):
      variables = jax.eval_shape(layer.init, jax.random.key(0), *given)
      text = jax.jit(layer.apply).lower(variables, *given).as_text()
      products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
      assert products and all(line.endswith(f"x{dtype}>") for line in products)


def test_resampling_pads_as_diffusers_does() -> None:
  x = _features(1, 6, 6, 3)
  params, found = _made(layers.Resample(4, up=False), x)
  down = _conv(x, **params["conv"], padding=((0, 1), (0, 1)), stride=2)
  np.testing.assert_allclose(found, down, rtol=1e-4, atol=1e-5)
  params, found = _made(layers.Resample(4, up=False, padding=1), x)
  down = _conv(x, **params["conv"], padding=((1, 1), (1, 1)), stride=2)
  np.testing.assert_allclose(found, down, rtol=1e-4, atol=1e-5)
  params, found = _made(layers.Resample(4, up=True), x)
  doubled = x.repeat(2, axis=1).repeat(2, axis=2)
  up = _conv(doubled, **params["conv"], padding=((1, 1), (1, 1)))
  np.testing.assert_allclose(found, up, rtol=1e-4, atol=1e-4)


def test_a_fresh_block_is_its_shortcut() -> None:
  """Its last convolution starts at zero."""
  x, temb = _features(2, 4, 4, 4), _features(2, 5)
  layer = layers.ResnetBlock(4, num_groups=2, epsilon=1e-5)
  params = jax.jit(layer.init)(jax.random.key(0), x, temb)
  np.testing.assert_array_equal(layer.apply(params, x, temb), x)
  params = random_params(params)
  first, second = (layer.apply(params, x, value) for value in (temb, -temb))
  assert np.abs(first - x).max() > 0.1 and np.abs(first - second).max() > 0.1


def test_zeros_of_the_right_shape_while_parameters_are_made() -> None:
  x = _features(1, 6, 6, 3)
  for layer in (
    layers.Conv(4),
    layers.Conv(4, stride=2, padding=((0, 1), (0, 1))),
    layers.Conv(4, 1, padding=0),
    layers.Conv(4, doubled=True),
  ):
    made, params = layer.init_with_output(jax.random.key(0), x)
    assert not made.any() and made.shape == layer.apply(params, x).shape
