"""Tiny autoencoders against a transcription of their sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

from tests.models.restorers import taef_tensors
from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models import tiny_autoencoder


def conv(tensors, name, x, stride=1):
  kernel = tensors[f"{name}.weight"].astype(np.float32)
  edge = kernel.shape[-1] // 2
  x = lax.conv_general_dilated(x, kernel, (stride, stride), [(edge, edge)] * 2, precision="highest")
  bias = tensors.get(f"{name}.bias")
  return x if bias is None else x + bias.astype(np.float32)[:, None, None]


def block(tensors, number, x):
  if f"{number}.pool.0.weight" in tensors:
    y = conv(tensors, f"{number}.pool.0", x)
    groups = y.reshape(len(y), 4, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / jnp.sqrt(
      groups.var(-1, keepdims=True) + 1e-5
    )
    y = groups.reshape(y.shape)
    y = y * tensors[f"{number}.pool.1.weight"].astype(np.float32)[:, None, None]
    y = y + tensors[f"{number}.pool.1.bias"].astype(np.float32)[:, None, None]
    x = x + conv(tensors, f"{number}.pool.3", jnp.maximum(y, 0))
  y = jnp.maximum(conv(tensors, f"{number}.conv.0", x), 0)
  y = jnp.maximum(conv(tensors, f"{number}.conv.2", y), 0)
  return jnp.maximum(conv(tensors, f"{number}.conv.4", y) + x, 0)


def encoded(tensors, images):
  x = conv(tensors, "0", jnp.asarray(images).transpose(0, 3, 1, 2))
  for number in (1, 3, 5):
    x = block(tensors, number, x)
    x = conv(tensors, f"{number + 1}", x, stride=2 if number < 5 else 1)
  return x


def decoded(tensors, latents):
  x = jnp.maximum(conv(tensors, "1", 3 * jnp.tanh(latents / 3)), 0)
  for number in (3, 6):
    x = block(tensors, number, x)
    x = conv(tensors, f"{number + 2}", jnp.repeat(jnp.repeat(x, 2, 2), 2, 3))
  return conv(tensors, "10", block(tensors, 9, x)).transpose(0, 2, 3, 1)


def save(folder, sides, suffix=".npz"):
  for side, tensors in zip(("encoder", "decoder"), sides):
    if suffix == ".npz":
      np.savez(folder / f"taef2_{side}_fp16.npz", **tensors)
    else:
      safetensors.numpy.save_file(tensors, folder / f"taef2_{side}_fp16{suffix}")
  return tiny_autoencoder.files_in(folder)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_networks(tmp_path, suffix):
  sides = taef_tensors()
  params = tiny_autoencoder.load(*save(tmp_path, sides, suffix))
  assert tiny_autoencoder.downscale(params) == 4
  images = np.random.default_rng(1).random((2, 16, 24, 3)).astype(np.float32)
  latents = jax.jit(tiny_autoencoder.encode)(params, images)
  expected = encoded(sides[0], images)
  np.testing.assert_allclose(latents.transpose(0, 3, 1, 2), expected, atol=2e-5)
  pictures = jax.jit(tiny_autoencoder.reconstruct)(params, images)
  assert pictures.shape == images.shape and pictures.std() > 0.02
  np.testing.assert_allclose(pictures, decoded(sides[1], expected), atol=5e-5)


def test_files_in_a_folder(tmp_path):
  assert tiny_autoencoder.files_in(tmp_path) is None
  (tmp_path / "encoder.npz").touch()
  with pytest.raises(ConfigError, match=r"needs one file of an encoder and one .* encoder\.npz"):
    tiny_autoencoder.files_in(tmp_path)
  (tmp_path / "decoder.safetensors").touch()
  names = [path.name for path in tiny_autoencoder.files_in(tmp_path)]
  assert names == ["encoder.npz", "decoder.safetensors"]


def test_other_networks_are_refused(tmp_path):
  encoder, decoder = taef_tensors()
  for change, message in (
    ({"1.skip.weight": np.zeros(1)}, r"1\.skip\.weight is no tensor of a tiny autoencoder"),
    ({"2.bias": np.zeros(8)}, "halves 1 times, .* doubles 2 times"),
    ({"7.conv.0.weight": np.zeros((8, 8, 3, 3))}, r"a layer of conv\.0, which is not known"),
  ):
    with pytest.raises(BadDataError, match=message):
      tiny_autoencoder.load(*save(tmp_path, (encoder | change, decoder)))
  (tmp_path / "taef2_encoder_fp16.npz").write_bytes(b"no archive")
  with pytest.raises(BadDataError, match="not a readable file of arrays"):
    tiny_autoencoder.load(*tiny_autoencoder.files_in(tmp_path))


def test_nothing_is_unpickled(tmp_path):
  encoder, decoder = taef_tensors()
  with pytest.raises(BadDataError, match="not a readable file of arrays"):
    tiny_autoencoder.load(*save(tmp_path, (encoder | {"0.bias": np.array([{}, 1])}, decoder)))
