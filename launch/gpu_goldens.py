"""Networks with fixed weights, whose outputs and gradients on a GPU are compared with known values.

Each part below has weights and inputs made by a hash of their names and positions, so that no file
holds them and no random generator can change them. `tests/goldens/make_gpu_goldens.py` computes the
known values on a CPU in float64; `launch.gpu_checks` computes them again on a GPU.

  smoke     a U-Net of 2 levels with attention, for tests
  cifar10   the DDPM U-Net of Ho et al. at 32x32, 35.7 M parameters
  sd_block  a transformer of Stable Diffusion: 4,096 positions, 8 heads of 40, 77 keys of text
  sd_up     a residual block and an upsampling of Stable Diffusion, 1,280 channels to 640
  vae       the encoder of Stable Diffusion at 128x128, with its one head of 512 channels

The files keep sketches: signed sums, whose distance estimates that of the arrays (`sketch`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import common
from udp_jax.models import performance
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.layers import Resample, ResnetBlock
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.transformer import Transformer2D
from udp_jax.ops.attention import Gpu

FILE = Path(__file__).parents[1] / "tests" / "goldens" / "gpu.npz"
# Sums of a sketch. The distance of two sketches is that of the arrays within about 3 %.
SUMS = 2048
# Arrays of at most this many values are kept whole.
WHOLE = 8192
# A weight whose gradient is below this part of the largest norm may differ by that much.
SMALL_GRADIENT = 1e-3
OUTPUT, WEIGHTS, NORMS = "output", "weights", "weight_norms"


class Mode(NamedTuple):
  """How a part is computed, and how far the result may be from the known values.

  Attributes:
    settings: fields of `models.performance`.
    output: largest relative error of the output, ||found - known|| / ||known||.
    gradient: largest relative error of each gradient.
    cosine: smallest cosine between found and known gradients.
    least: relative error of the output that the mode's rounding exceeds on a GPU that has it.
  """

  settings: Mapping[str, Any]
  output: float
  gradient: float
  cosine: float
  least: float = 0.0


# TF32's limits are about three times what truncating the inputs of all products to its ten bits
# gives on the part "smoke": 2.4e-3 and 3.3e-3, emulated on a CPU. Its least error is the largest
# that "highest" may have.
MODES = {
  "highest": Mode({"dtype": "float32", "precision": "highest"}, 1e-5, 5e-5, 0.999999),
  "tf32": Mode({"dtype": "float32", "precision": "tf32"}, 6e-3, 1e-2, 0.999, least=1e-5),
  "bf16": Mode({"dtype": "bfloat16", "precision": ""}, 2e-2, 6e-2, 0.997),
}


class Part(NamedTuple):
  """A network with the shapes of its inputs.

  Attributes:
    module: options -> network.
    call: (network with weights bound, inputs) -> output.
    inputs: shape of each input; all are differentiated.
    options: fields of `models.performance` -> options, as a run makes them.
  """

  module: Callable[[dict[str, Any]], nn.Module]
  call: Callable[[Any, dict[str, jax.Array]], jax.Array]
  inputs: dict[str, tuple[int, ...]]
  options: Callable[[Mapping[str, Any]], dict[str, Any]] = performance.module_options


class _Up(nn.Module):
  """The end of a level on the way up: a residual block over a skip connection, then upsampling."""

  method: str | None

  @nn.compact
  def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
    x = ResnetBlock(640, 32, 1e-5, method=self.method, name="resnet")(x, temb)
    return Resample(640, True, method=self.method, name="upsampler")(x)


def _unet(config: Mapping[str, Any]) -> Callable[[dict[str, Any]], nn.Module]:
  return lambda options: UNet2D(UNet2DConfig(**config), **options)


def _denoise(unet: Any, given: dict[str, jax.Array]) -> jax.Array:
  # Two timesteps, as different parts of the schedule have different embeddings.
  return unet(given["x"], jnp.array([10, 700], jnp.int32))


def _transformer(options: dict[str, Any]) -> nn.Module:
  speed = {name: options[name] for name in ("attention", "text_attention", "fused")}
  return Transformer2D(8, 32, method=options["conv_method"], **speed)


PARTS = {
  "smoke": Part(_unet(common.DDPM_16PX), _denoise, {"x": (2, 16, 16, 3)}),
  "cifar10": Part(_unet(common.DDPM_CIFAR10), _denoise, {"x": (2, 32, 32, 3)}),
  "sd_block": Part(
    _transformer,
    lambda block, given: block(given["x"], given["text"]),
    {"x": (1, 64, 64, 320), "text": (1, 77, 768)},
    performance.transformer_options,
  ),
  "sd_up": Part(
    lambda options: _Up(options["conv_method"]),
    lambda block, given: block(given["x"], given["time"]),
    {"x": (1, 16, 16, 1920), "time": (1, 1280)},
  ),
  "vae": Part(
    lambda options: AutoencoderKL(AutoencoderKLConfig(), **options),
    lambda vae, given: jnp.concatenate(vae.encode(given["x"]), -1),
    {"x": (1, 128, 128, 3)},
    performance.vae_options,
  ),
}


def mix(numbers: np.ndarray) -> np.ndarray:
  """Mixes uint32 numbers so that each bit of the result depends on all bits of the number."""
  x = numbers.astype(np.uint32)
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns float32 numbers in [-1, 1) that depend on the name and each number's position."""
  count = int(np.prod(shape))
  bits = mix(mix(np.arange(count, dtype=np.uint32)) + np.uint32(zlib.crc32(name.encode())))
  return ((bits >> np.uint32(8)).astype(np.float32) * 2.0**-23 - 1).reshape(shape)


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a weight that keeps the variance of what passes: a kernel, a scale or a bias."""
  numbers = uniform(path, shape)
  if path.endswith("kernel"):
    return numbers * np.float32((3 / np.prod(shape[:-1])) ** 0.5)
  return numbers * np.float32(0.1) + np.float32(path.endswith("scale"))


def sketch(array: Any, name: str = "signs") -> np.ndarray:
  """Returns at most `WHOLE` float64 numbers that stand for an array.

  A large array is divided into `SUMS` sums of every `SUMS`-th value with signs by hash, whose
  expected squared length is that of the array. The sketch of a difference is the difference of
  the sketches, and every value of the array counts.
  """
  values = np.asarray(array).astype(np.float64).ravel()
  if values.size <= WHOLE:
    return values
  positions = np.arange(values.size, dtype=np.uint32)
  signs = mix(positions + np.uint32(zlib.crc32(name.encode()))) & np.uint32(1)
  values = np.where(signs, values, -values)
  return np.pad(values, (0, -values.size % SUMS)).reshape(-1, SUMS).sum(0)


def names() -> tuple[str, ...]:
  """Returns the parts that are checked on a GPU, those that use most of a run first."""
  return tuple(name for name in PARTS if name != "smoke")


class Prepared(NamedTuple):
  """A part, ready to be computed.

  Attributes:
    run: compiled by `jax.jit`: (weights, inputs, cotangent of the output) -> (output, gradients by
      weights, gradients by inputs).
    weights: the part's parameters.
    inputs: its inputs, by name.
    cotangent: in the shape of the output.
  """

  run: Any
  weights: Any
  inputs: dict[str, np.ndarray]
  cotangent: np.ndarray


def prepare(name: str, settings: Mapping[str, Any], *, double: bool = False) -> Prepared:
  """Makes the weights and inputs of a part, and the function that differentiates it.

  Args:
    name: one of `PARTS`.
    settings: fields of `models.performance`.
    double: whether to compute in float64 (under `jax.enable_x64`), whatever the settings say.
  """
  part = PARTS[name]
  options = part.options(settings)
  if double:
    options["dtype"] = jnp.float64
  module = part.module(options)
  dtype = np.float64 if double else np.float32
  inputs = {key: uniform(f"{name}/{key}", shape) for key, shape in part.inputs.items()}
  inputs = {key: (value * np.float32(3**0.5)).astype(dtype) for key, value in inputs.items()}

  def call(weights: Any, given: dict[str, jax.Array]) -> jax.Array:
    narrow = {key: value.astype(options["dtype"]) for key, value in given.items()}
    bound = module.bind({"params": weights})
    return part.call(bound, narrow).astype(dtype)

  def initial(key: jax.Array) -> Any:
    return nn.init(part.call, module)(key, inputs)["params"]

  def made(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return weight(f"{name}/{'/'.join(key.key for key in path)}", leaf.shape).astype(dtype)

  shapes = jax.eval_shape(initial, jax.random.key(0))
  weights = jax.tree_util.tree_map_with_path(made, shapes)
  output = jax.eval_shape(call, weights, inputs)
  cotangent = uniform(f"{name}/cotangent", output.shape).astype(dtype)

  def run(weights: Any, given: dict[str, jax.Array], cotangent: jax.Array) -> Any:
    out, pull = jax.vjp(performance.precisely(call, settings), weights, given)
    return out, *pull(cotangent)

  return Prepared(jax.jit(run), weights, inputs, cotangent)


def sketches(output: Any, by_weights: Any, by_inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns what is kept of a part's output and gradients, float32 arrays by name."""
  leaves = [np.asarray(leaf).astype(np.float64).ravel() for leaf in jax.tree.leaves(by_weights)]
  found = {OUTPUT: sketch(output), WEIGHTS: sketch(np.concatenate(leaves))}
  found |= {f"input_{key}": sketch(value) for key, value in by_inputs.items()}
  found[NORMS] = np.array([np.linalg.norm(leaf) for leaf in leaves])
  return {key: value.astype(np.float32) for key, value in found.items()}


def known(name: str) -> dict[str, np.ndarray]:
  """Returns the known values of a part, from the file."""
  with np.load(FILE) as file:
    return {key.partition("/")[2]: file[key] for key in file.files if key.partition("/")[0] == name}


class Compared(NamedTuple):
  """One comparison with a known value.

  Attributes:
    what: the array's name.
    error: relative error of the array, or the largest of the norms; NaN if a value is not finite.
    tolerance: the largest error that passes.
    cosine: cosine between both, None for norms.
    passes: whether error and cosine keep within the mode's limits.
  """

  what: str
  error: float
  tolerance: float
  cosine: float | None
  passes: bool


def compare(
  found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], mode: Mode
) -> list[Compared]:
  """Compares sketches with the known ones of the same part. NaN never passes.

  Raises:
    ValueError: the arrays or their sizes differ: another network than the file's.
  """
  if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
    raise ValueError("the known values are of other arrays: make tests/goldens/gpu.npz again")
  compared = []
  for what, right in wanted.items():
    left, right = found[what].astype(np.float64), right.astype(np.float64)
    limit = mode.output if what == OUTPUT else mode.gradient
    cosine = None
    if what == NORMS:
      # Some gradients are zero but for rounding, such as those of the keys' biases.
      error = float(np.max(np.abs(left - right) / (right + SMALL_GRADIENT * right.max())))
    else:
      error = float(np.linalg.norm(left - right) / np.linalg.norm(right))
      cosine = float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
    passes = error <= limit and (cosine is None or what == OUTPUT or cosine >= mode.cosine)
    compared.append(Compared(what, error, limit, cosine, passes))
  return compared


def unrounded(compared: Sequence[Compared], mode: Mode, gpu: Gpu | None) -> str:
  """Returns a note if the output has a smaller error than the mode's rounding makes; else "".

  Args:
    compared: all comparisons of a part.
    mode: how it was computed.
    gpu: where; GPUs have TF32 from compute capability 8.0 on.
  """
  if gpu is None or gpu.capability < (8, 0):
    return ""
  (error,) = (line.error for line in compared if line.what == OUTPUT)
  if not error < mode.least:
    return ""
  return f"an error of the output below {mode.least:g}: not rounded as asked"
