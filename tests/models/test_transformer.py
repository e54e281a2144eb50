"""The transformer's parts, against SciPy and NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.conftest import random_params
from udp_jax.models import transformer


def _features(*shape: int) -> np.ndarray:
  return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _softmax(scores: np.ndarray) -> np.ndarray:
  return scipy.special.softmax(scores.astype(np.float64), axis=-1)


def test_gelu_is_the_exact_one() -> None:
  x = np.linspace(-6, 6, 101)
  expected = x * scipy.special.ndtr(x)
  np.testing.assert_allclose(transformer.gelu(x.astype(np.float32)), expected, atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm_far_from_zero(mean: float) -> None:
  x = _features(4, 16) + np.float32(mean)
  layer = transformer.LayerNorm()
  params = random_params(jax.eval_shape(layer.init, jax.random.key(0), x))
  wide = x.astype(np.float64)
  normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
  expected = normed * params["params"]["scale"] + params["params"]["bias"]
  np.testing.assert_allclose(layer.apply(params, x), expected, atol=2e-4)


@pytest.mark.parametrize("with_text", [False, True])
def test_attention_by_numpy(with_text: bool) -> None:
  x, cond = _features(2, 5, 6), _features(2, 3, 4) if with_text else None
  layer = transformer.Attention(heads=2)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, cond)
  params = random_params(shapes)
  kernels = {name: leaf["kernel"] for name, leaf in params["params"].items()}
  source = x if cond is None else cond
  query = (x @ kernels["to_q"]).reshape(2, 5, 2, 3)
  key, value = (
    (source @ kernels[name]).reshape(2, source.shape[1], 2, 3) for name in ("to_k", "to_v")
  )
  weights = _softmax(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(3))
  mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, 5, 6)
  expected = mixed @ kernels["to_out_0"] + params["params"]["to_out_0"]["bias"]
  np.testing.assert_allclose(layer.apply(params, x, cond), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_text", [False, True])
def test_one_product_or_three(with_text: bool) -> None:
  """Of query, key and value: the same parameters, values and gradients."""
  with jax.enable_x64(True):
    x = _features(2, 5, 6).astype(np.float64)
    given = (x, _features(2, 3, 4).astype(np.float64)) if with_text else (x,)
    fused = transformer.Attention(heads=2)
    apart = fused.clone(fused=False)
    shapes = jax.eval_shape(fused.init, jax.random.key(0), *given)
    assert jax.eval_shape(apart.init, jax.random.key(0), *given) == shapes
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), random_params(shapes))

    def results(layer):
      loss = lambda *given: jnp.sum(jnp.square(layer.apply(*given)))
      return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, *given)

    found = [jax.tree.leaves(results(layer)) for layer in (fused, apart)]
    for one, other in zip(*found, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_fresh_transformer_changes_nothing() -> None:
  """Its last projection starts at zero."""
  x, cond = _features(1, 3, 3, 4), _features(1, 2, 5)
  layer = transformer.Transformer2D(heads=2, num_groups=2)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, cond)["params"]
  assert shapes["proj_in"]["kernel"].shape == (1, 1, 4, 4)
  linear = layer.clone(linear_projection=True)
  dense = jax.eval_shape(linear.init, jax.random.key(0), x, cond)["params"]
  assert dense["proj_in"]["kernel"].shape == (4, 4)
  params = random_params(shapes)
  apply = jax.jit(layer.apply)
  assert np.abs(apply({"params": params}, x, cond) - x).max() > 0.01
  last = jax.tree.map(np.zeros_like, params["proj_out"])
  np.testing.assert_array_equal(apply({"params": params | {"proj_out": last}}, x, cond), x)
