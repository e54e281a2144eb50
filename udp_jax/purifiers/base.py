"""What a purifier is, and how one is run over pictures: batch by batch, split over devices.

A purifier maps pictures to pictures. What it draws for a picture comes from that picture's own key,
and nothing it computes crosses pictures, so neither the batch around a picture nor the number of
devices changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from udp_jax import lookup, parallel
from udp_jax.errors import ConfigError, DivergedError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops.image import quantise, to_float
from udp_jax.purifiers import ranges
from udp_jax.randomness import example_keys, stream

_PACKAGE = "udp_jax.purifiers"


class Iteration(NamedTuple):
  """A purifier's work in steps, so that a host can show progress between compiled calls.

  Every leaf of the state has a leading batch axis.

  Attributes:
    start: (params, keys (B,), images) -> state.
    advance: (params, images, state) -> (state, losses (B,)), one step.
    finish: (params, images, state) -> images.
    num_steps: how many steps there are.
    hold: (params, images) -> what `advance` gets in place of params, made once for all the steps of
      a call, as by `DiffusionModel.hold`.
  """

  start: Callable[[Params, jax.Array, jax.Array], Any]
  advance: Callable[[Params, jax.Array, Any], tuple[Any, jax.Array]]
  finish: Callable[[Params, jax.Array, Any], jax.Array]
  num_steps: int
  hold: Callable[[Params, jax.Array], Params] = lambda params, images: params


class Purifier(NamedTuple):
  """Pure functions that `jit` takes.

  Attributes:
    init: (key, model_params=None) -> params, all that `apply` needs: the model's parameters (fresh
      ones from the key where None is given) and what the method brings itself; empty for filters.
    apply: (params, keys, images) -> images; keys (B,), one a picture, images (B, H, W, 3) float in
      [0, 1], before and after.
    needs_model: whether a trained model is needed.
    iteration: the same as `apply` in steps, for methods that take many.
  """

  init: Callable[..., Params]
  apply: Callable[[Params, jax.Array, jax.Array], jax.Array]
  needs_model: bool = False
  iteration: Iteration | None = None


def no_params(key: jax.Array, model_params: Params | None = None) -> Params:
  """`Purifier.init` of a method without parameters."""
  del key, model_params
  return {}


def model_params_only(model: DiffusionModel) -> Callable[..., Params]:
  """`Purifier.init` of a method whose parameters are the model's."""

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    return model.init(key) if model_params is None else model_params

  return init


def iterative(init: Callable[..., Params], iteration: Iteration) -> Purifier:
  """A purifier made of steps; its `apply` is one `lax.scan` over them."""

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    state = iteration.start(params, keys, images)
    state, _ = _scan(iteration, params, images, state, iteration.num_steps)
    return iteration.finish(params, images, state)

  return Purifier(init, apply, needs_model=True, iteration=iteration)


def _scan(iteration: Iteration, params: Params, images: jax.Array, state: Any, num_steps: int):
  held = iteration.hold(params, images)

  def body(state: Any, _: None) -> tuple[Any, jax.Array]:
    return iteration.advance(held, images, state)

  return jax.lax.scan(body, state, None, length=num_steps)


def available() -> list[str]:
  """Names of all purifiers."""
  return lookup.available(_PACKAGE)


def build(name: str, model: DiffusionModel | None, options: dict[str, Any]) -> Purifier:
  """Makes the purifier `name`.

  Args:
    name: a module of this package.
    model: what diffusion and autoencoder methods work with; None is enough for the others.
    options: the constructor's keyword arguments. One that ends in `_255` is in 8-bit levels and
      becomes the argument without the suffix, divided by 255.

  Raises:
    ConfigError: an unknown purifier, an unknown, missing or unusable option, or no model for a
      method that needs one.
    MissingDataError: weights of a perceptual distance are not there.
  """
  function = lookup.constructor(_PACKAGE, name)
  for option, value in options.items():
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.endswith("_255") and not number:
      raise ConfigError(f"purifier {name}: {option} must be a number, got {value!r}")
  scaled = {
    k.removesuffix("_255"): v / 255 if k.endswith("_255") else v for k, v in options.items()
  }
  lookup.check_options(function, f"purifier {name}", scaled)
  ranges.check(function, name, scaled)
  return function(model, **scaled)


def need_model(model: DiffusionModel | None, name: str) -> DiffusionModel:
  """Raises ConfigError unless there is a model."""
  if model is None:
    raise ConfigError(f"purifier {name} works with a diffusion model: give --model=FOLDER")
  return model


def need_autoencoder(model: DiffusionModel | None, name: str) -> tuple[DiffusionModel, int]:
  """The model and its pixels to a latent; raises ConfigError unless it has an autoencoder."""
  model = need_model(model, name)
  if model.reconstruct is None:
    raise ConfigError(f"purifier {name} works with an autoencoder: give a latent diffusion model")
  return model, model.image_shape[0] // model.shape[0]


def mirrored_to_multiple(images: jax.Array, multiple: int) -> jax.Array:
  """Extends (B, H, W, C) at the bottom and the right by mirroring, to multiples of `multiple`."""
  height, width = images.shape[1:3]
  padding = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
  return jnp.pad(images, padding, mode="symmetric")


def picture_keys(key: jax.Array, ids: jax.Array | np.ndarray) -> jax.Array:
  """Keys (B,) of the pictures `ids` (B,), for `Purifier.apply`."""
  return example_keys(stream(key, "purify"), 0, ids)


def run(
  purifier: Purifier,
  params: Params,
  keys: jax.Array,
  images: jax.Array,
  *,
  mesh: Mesh | None = None,
  steps_per_call: int = 50,
  on_progress: Callable[[int, np.ndarray], None] | None = None,
) -> tuple[jax.Array, np.ndarray]:
  """Purifies one batch; a method in steps is run in compiled calls of several steps.

  Args:
    purifier: from `build`.
    params: of `purifier.init`.
    keys: (B,), one a picture.
    images: (B, H, W, 3) float in [0, 1].
    mesh: devices to split the batch over; B is a multiple of their number. No device waits for
      another.
    steps_per_call: at most so many steps are one call; the largest divisor of the number of steps
      is taken, so that one program is compiled.
    on_progress: called with (steps done, losses (B,) of the last of them) about calls that have
      ended, while the next one runs.

  Returns:
    Purified images (B, H, W, 3) in [0, 1], and the losses (num_steps, B); (0, B) without steps.

  Raises:
    DivergedError: a loss is not finite at the end.
  """
  if purifier.iteration is None:
    return _apply(purifier, mesh, params, keys, images), np.zeros((0, len(images)), np.float32)
  total = purifier.iteration.num_steps
  length = max(n for n in range(1, max(1, min(steps_per_call, total)) + 1) if total % n == 0)
  state = _start(purifier, mesh, params, keys, images)
  losses: list[jax.Array] = []
  for _ in range(total // length):
    state, some = _advance(purifier, mesh, length, params, images, state)
    # What is fetched has been computed by the time that this call is under way.
    if losses and on_progress is not None:
      on_progress(length * len(losses), np.asarray(losses[-1])[-1])
    losses.append(some)
  purified = _finish(purifier, mesh, params, images, state)
  history = np.concatenate([np.asarray(part) for part in losses])
  if not np.isfinite(history[-1]).all():
    raise DivergedError("the loss of a picture is not finite; try a smaller learning_rate")
  if on_progress is not None:
    on_progress(total, history[-1])
  return purified, history


_EACH = PartitionSpec(parallel.AXES)


def _split(function: Callable, mesh: Mesh | None, out: Any = _EACH) -> Callable:
  """`function(params, ...)` with all arguments but the first split over the mesh, if there is one.

  Not left to the partitioner: it cannot see into a call of the host, and would gather the batch.
  """
  if mesh is None or mesh.size == 1:
    return function
  specs = (PartitionSpec(), _EACH, _EACH)

  def split(params: Params, first: Any, second: Any) -> Any:
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    return mapped(params, first, second)

  return split


@partial(jax.jit, static_argnums=(0, 1))
def _apply(purifier: Purifier, mesh: Mesh | None, params, keys, images):
  return _split(purifier.apply, mesh)(params, keys, images)


@partial(jax.jit, static_argnums=(0, 1))
def _start(purifier: Purifier, mesh: Mesh | None, params, keys, images):
  assert purifier.iteration is not None
  return _split(purifier.iteration.start, mesh)(params, keys, images)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _advance(purifier: Purifier, mesh: Mesh | None, num_steps: int, params, images, state):
  assert purifier.iteration is not None
  steps = partial(_scan, purifier.iteration, num_steps=num_steps)
  out = (_EACH, PartitionSpec(None, parallel.AXES))
  return _split(steps, mesh, out)(params, images, state)


@partial(jax.jit, static_argnums=(0, 1))
def _finish(purifier: Purifier, mesh: Mesh | None, params, images, state):
  assert purifier.iteration is not None
  return _split(purifier.iteration.finish, mesh)(params, images, state)


def purify(
  purifier: Purifier,
  params: Params,
  key: jax.Array,
  images: np.ndarray,
  ids: Sequence[int] | np.ndarray,
  *,
  per_device_batch_size: int = 8,
  mesh: Mesh | None = None,
  steps_per_call: int = 50,
  on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
  """Purifies pictures of one size, 8 bits in and out.

  Args:
    purifier: from `build`.
    params: of `purifier.init`.
    key: decides every draw, together with the pictures' ids.
    images: (N, H, W, 3) uint8.
    ids: N numbers in [0, 2^32): a picture's identity for randomness.
    per_device_batch_size: pictures that a device works on at a time; changes memory and speed.
    mesh: devices; None for the first alone.
    steps_per_call: see `run`.
    on_progress: called with the number of pictures done, fractions included.

  Returns:
    (N, H, W, 3) uint8.
  """
  count = len(images)
  devices = 1 if mesh is None else mesh.size
  # As many batches as needed, of even size: less padding.
  size = -(-count // (devices * -(-count // (per_device_batch_size * devices)))) * devices
  keys = picture_keys(key, np.asarray(ids, np.uint32))
  if mesh is not None:
    params = parallel.replicate(params, mesh)
  out = np.empty_like(images)
  for start in range(0, count, size):
    # The last batch is filled up with repeats, so that one size is compiled.
    rows = (start + np.arange(size)) % count

    def step_done(done: int, losses: np.ndarray, start: int = start) -> None:
      if on_progress is not None and purifier.iteration is not None:
        part = done / purifier.iteration.num_steps
        on_progress(start + part * min(size, count - start))

    purified, _ = run(
      purifier,
      params,
      keys[rows],
      to_float(images[rows]),
      mesh=mesh,
      steps_per_call=steps_per_call,
      on_progress=step_done,
    )
    stop = min(start + size, count)
    out[start:stop] = np.asarray(quantise(purified))[: stop - start]
    if on_progress is not None:
      on_progress(float(stop))
  return out
