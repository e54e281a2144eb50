import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import inception

# Some of the 2,048 features of `_image()` that PyTorch 2.13 computes with the weights of
# `_random_tensors()`: torchvision 0.29's inception_v3(num_classes=1008, aux_logits=False) with the
# forward passes of blocks A, C and E as pytorch-fid describes them.
PYTORCH_FEATURES = {
  0: 0.417516,
  128: 0.588126,
  256: 0.028180,
  384: 1.221206,
  512: 0.012229,
  640: 0.083004,
  768: 0.133999,
  896: 0.000000,
  1024: 0.029270,
  1152: 0.385692,
  1280: 0.092388,
  1408: 0.466080,
  1536: 0.157114,
  1664: 1.419871,
  1792: 0.054317,
  1920: 1.089244,
  2047: 0.000877,
}


def _random_tensors():
  generator = np.random.default_rng(0)
  tensors = {}
  for name, shape in inception.tensor_shapes().items():
    values = generator.standard_normal(shape, np.float32)
    if name.endswith("conv.weight"):
      values *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
    elif name.endswith("running_var"):
      values = 0.5 + np.abs(values)
    elif name.endswith("bn.weight"):
      values = 1 + values / 10
    else:
      values /= 10
    tensors[name] = values
  return tensors


def _image():
  return np.random.default_rng(1).uniform(size=(1, 40, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors():
  return _random_tensors()


@pytest.fixture(scope="module")
def params(tensors):
  return inception.params_from_tensors(tensors)


def test_the_layout_is_the_published_network():
  convs = inception.conv_shapes()
  assert len(convs) == 94
  # Keras counts 21,768,352 trainable parameters in its InceptionV3 without the classifier: these
  # kernels, and one BatchNorm offset for each output channel.
  kernels = sum(int(np.prod(shape)) for shape in convs.values())
  channels = sum(shape[0] for shape in convs.values())
  assert (kernels, channels) == (21_751_136, 17_216)
  shapes = inception.tensor_shapes()
  assert len(shapes) == 94 * 5 + 2
  assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
  assert shapes["Mixed_7c.branch_pool.bn.running_var"] == (192,)


@pytest.mark.slow
def test_features_agree_with_pytorch(params):
  image = jnp.asarray(_image())
  features = jax.jit(inception.features)(params, jnp.concatenate([image, 1 - image]))
  assert features.shape == (2, 2048) and features.dtype == jnp.float32
  assert np.isfinite(features).all()
  assert np.abs(features[0] - features[1]).max() > 0.01
  expected = np.array(list(PYTORCH_FEATURES.values()))
  np.testing.assert_allclose(
    features[0][np.array(list(PYTORCH_FEATURES))], expected, rtol=1e-4, atol=2e-6
  )


class _Reference:
  """PyTorch's formulas in NCHW, with BatchNorm apart and padding in numbers."""

  def __init__(self, tensors, block):
    self.tensors, self.block = tensors, block

  def conv(self, x, name, stride=1, padding=(0, 0)):
    name = f"{self.block}.{name}"
    pads = [(n, n) for n in padding]
    x = lax.conv_general_dilated(x, self.tensors[f"{name}.conv.weight"], (stride, stride), pads)
    mean, variance, weight, bias = (
      self.tensors[f"{name}.bn.{field}"][:, None, None]
      for field in ("running_mean", "running_var", "weight", "bias")
    )
    return np.maximum((x - mean) / np.sqrt(variance + 1e-3) * weight + bias, 0)

  def chain(self, x, *steps):
    for name, padding in steps:
      x = self.conv(x, name, padding=padding)
    return x


def _average(x):
  """count_include_pad=False, as a ratio of two zero-padded box filters."""
  box = lambda y: scipy.ndimage.uniform_filter(y, (1, 1, 3, 3), mode="constant")
  x = np.asarray(x, np.float64)
  return (box(x) / box(np.ones_like(x))).astype(np.float32)


def _maximum(x):
  return scipy.ndimage.maximum_filter(x, (1, 1, 3, 3), mode="constant", cval=-np.inf)


def _halved_maximum(x):
  return _maximum(x)[:, :, 1:-1:2, 1:-1:2]


def _mixed_5b(tensors, x):
  block = _Reference(tensors, "Mixed_5b")
  double = (("branch3x3dbl_1", (0, 0)), ("branch3x3dbl_2", (1, 1)), ("branch3x3dbl_3", (1, 1)))
  return [
    block.conv(x, "branch1x1"),
    block.chain(x, ("branch5x5_1", (0, 0)), ("branch5x5_2", (2, 2))),
    block.chain(x, *double),
    block.conv(_average(x), "branch_pool"),
  ]


def _mixed_6a(tensors, x):
  block = _Reference(tensors, "Mixed_6a")
  double = block.chain(x, ("branch3x3dbl_1", (0, 0)), ("branch3x3dbl_2", (1, 1)))
  return [
    block.conv(x, "branch3x3", stride=2),
    block.conv(double, "branch3x3dbl_3", stride=2),
    _halved_maximum(x),
  ]


def _mixed_6c(tensors, x):
  block = _Reference(tensors, "Mixed_6c")
  wide, tall = (0, 3), (3, 0)
  single = (("branch7x7_1", (0, 0)), ("branch7x7_2", wide), ("branch7x7_3", tall))
  double = [(f"branch7x7dbl_{i}", p) for i, p in ((2, tall), (3, wide), (4, tall), (5, wide))]
  return [
    block.conv(x, "branch1x1"),
    block.chain(x, *single),
    block.chain(x, ("branch7x7dbl_1", (0, 0)), *double),
    block.conv(_average(x), "branch_pool"),
  ]


def _mixed_7a(tensors, x):
  block = _Reference(tensors, "Mixed_7a")
  single = block.conv(x, "branch3x3_1")
  wide, tall = (0, 3), (3, 0)
  seven = (("branch7x7x3_1", (0, 0)), ("branch7x7x3_2", wide), ("branch7x7x3_3", tall))
  return [
    block.conv(single, "branch3x3_2", stride=2),
    block.conv(block.chain(x, *seven), "branch7x7x3_4", stride=2),
    _halved_maximum(x),
  ]


def _mixed_7(tensors, x, name, pool):
  block = _Reference(tensors, name)
  single = block.conv(x, "branch3x3_1")
  double = block.chain(x, ("branch3x3dbl_1", (0, 0)), ("branch3x3dbl_2", (1, 1)))
  return [
    block.conv(x, "branch1x1"),
    block.conv(single, "branch3x3_2a", padding=(0, 1)),
    block.conv(single, "branch3x3_2b", padding=(1, 0)),
    block.conv(double, "branch3x3dbl_3a", padding=(0, 1)),
    block.conv(double, "branch3x3dbl_3b", padding=(1, 0)),
    block.conv(pool(x), "branch_pool"),
  ]


BLOCKS = {
  "Mixed_5b": (192, inception._block_a, _mixed_5b),
  "Mixed_6a": (288, inception._block_b, _mixed_6a),
  "Mixed_6c": (768, inception._block_c, _mixed_6c),
  "Mixed_7a": (768, inception._block_d, _mixed_7a),
  "Mixed_7b": (
    1280,
    lambda params, name, x: inception._block_e(params, name, x, inception._average_pool(x)),
    lambda tensors, x: _mixed_7(tensors, x, "Mixed_7b", _average),
  ),
  "Mixed_7c": (
    2048,
    lambda params, name, x: inception._block_e(params, name, x, inception._max_pool(x, 1, "SAME")),
    lambda tensors, x: _mixed_7(tensors, x, "Mixed_7c", _maximum),
  ),
}


# The whole network has PyTorch's values above; one block with each of the two kinds of pooling.
FIRST = ("Mixed_5b", "Mixed_7c")


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in BLOCKS],
)
def test_a_block_agrees_with_its_formula(tensors, params, name):
  channels, block, formula = BLOCKS[name]
  x = np.random.default_rng(2).normal(size=(1, 9, 9, channels)).astype(np.float32)
  actual = block(params, name, jnp.asarray(x))
  expected = np.concatenate(formula(tensors, x.transpose(0, 3, 1, 2)), axis=1)
  np.testing.assert_allclose(actual, expected.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_weights_are_read_from_safetensors(tmp_path, tensors, params):
  path = tmp_path / "weights.safetensors"
  counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}
  safetensors.numpy.save_file(tensors | counters, path)
  loaded = inception.load(path)
  assert loaded.keys() == params.keys()
  for name, conv in params.items():
    np.testing.assert_array_equal(loaded[name].kernel, conv.kernel)
    np.testing.assert_array_equal(loaded[name].bias, conv.bias)


def test_missing_weights_are_told_with_the_way_to_get_them(tmp_path):
  for path in (None, tmp_path / "absent.safetensors"):
    with pytest.raises(MissingDataError, match=r"pytorch-fid.*save_file") as error:
      inception.load(path)
    assert path is None or str(path) in str(error.value)


def test_a_file_of_another_format_is_refused(tmp_path):
  path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
  path.write_bytes(b"PK\x03\x04 a zip archive of PyTorch")
  with pytest.raises(BadDataError, match="not a readable safetensors file.*save_file"):
    inception.load(path)


def test_a_missing_misshapen_or_unknown_tensor_is_named(tensors):
  name = "Mixed_6e.branch7x7_2.bn.running_var"
  with pytest.raises(BadDataError, match=f"{name} .* is missing"):
    inception.params_from_tensors({k: v for k, v in tensors.items() if k != name})
  with pytest.raises(BadDataError, match=rf"{name} is \(191,\), expected \(192,\)"):
    inception.params_from_tensors(tensors | {name: np.ones(191)})
  with pytest.raises(BadDataError, match="AuxLogits.fc.weight has no place"):
    inception.params_from_tensors(tensors | {"AuxLogits.fc.weight": np.ones(1)})


def test_torchvisions_own_weights_are_refused(tensors):
  with pytest.raises(BadDataError, match=r"fc.weight is \(1000, 2048\), expected \(1008, 2048\)"):
    inception.params_from_tensors(tensors | {"fc.weight": np.zeros((1000, 2048))})
