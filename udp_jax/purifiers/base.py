"""The type of a purifier, and how purifiers run on pictures: in batches, split over devices.

A purifier maps pictures to pictures. It draws from each picture's own key and computes nothing
across pictures, so the result depends neither on the batch around a picture nor on the number of
devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from udp_jax import registry
from udp_jax.errors import ConfigError, DivergedError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops.image import quantise, to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.purifiers import ranges
from udp_jax.runtime import mesh as mesh_lib

_PACKAGE = "udp_jax.purifiers"
# Methods whose model is a prior for clean pictures, which need not be the attacked model.
PRIORS = ("diffpure", "freqpure", "gridpure")


class Iteration(NamedTuple):
  """A purifier in steps, so that a host can show progress between compiled calls.

  Every leaf of the state has a leading batch axis.

  Attributes:
    start: (params, keys (B,), images) -> state.
    advance: (params, images, state) -> (state, losses (B,)), one step.
    finish: (params, images, state) -> images.
    num_steps: number of steps.
    hold: (params, images) -> the params that `advance` gets, made once for all steps of a call, as
      by `DiffusionModel.hold`.
  """

  start: Callable[[Params, jax.Array, jax.Array], Any]
  advance: Callable[[Params, jax.Array, Any], tuple[Any, jax.Array]]
  finish: Callable[[Params, jax.Array, Any], jax.Array]
  num_steps: int
  hold: Callable[[Params, jax.Array], Params] = lambda params, images: params


class InitFn(Protocol):
  """Makes the parameters of a purifier."""

  def __call__(self, key: jax.Array, model_params: Params | None = None) -> Params:
    """Collects all parameters that `ApplyFn` needs.

    Args:
      key: draws fresh parameters if none are given.
      model_params: parameters of the model that the purifier uses; None for fresh ones.

    Returns:
      The parameters of the model and of the method itself; {} for filters.
    """


class ApplyFn(Protocol):
  """Purifies pictures."""

  def __call__(self, params: Params, keys: jax.Array, images: jax.Array, /) -> jax.Array:
    """Purifies a batch; a picture's result does not depend on the batch around it.

    Args:
      params: from `InitFn`.
      keys: (B,), one per picture.
      images: (B, H, W, 3), float in [0, 1].

    Returns:
      Pictures (B, H, W, 3), float32 in [0, 1].
    """


class Purifier(NamedTuple):
  """A purifier as pure functions, which can be jitted.

  Attributes:
    init: (key, model_params=None) -> params.
    apply: (params, keys, images) -> images.
    needs_model: whether a trained model is needed.
    iteration: the steps of `apply`, for methods that take many.
  """

  init: InitFn
  apply: ApplyFn
  needs_model: bool = False
  iteration: Iteration | None = None


def no_params(key: jax.Array, model_params: Params | None = None) -> Params:
  """`Purifier.init` of a method without parameters.

  >>> no_params(jax.random.key(0))
  {}
  """
  del key, model_params
  return {}


def model_params_only(model: DiffusionModel) -> InitFn:
  """`Purifier.init` of a method that uses only the model's parameters.

  >>> from udp_jax.models import toy
  >>> sorted(model_params_only(toy.on_pixels())(jax.random.key(0)))
  ['log_spread', 'mean']
  """

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    return model.init(key) if model_params is None else model_params

  return init


def iterative(init: InitFn, iteration: Iteration) -> Purifier:
  """A purifier made of steps; its `apply` is one `lax.scan` over them.

  >>> halved = lambda params, images, state: (state / 2, state.mean((1, 2, 3)))
  >>> steps = Iteration(lambda params, keys, images: images, halved, lambda p, i, state: state, 3)
  >>> iterative(no_params, steps).apply({}, None, jnp.ones((1, 2, 2, 3))).max().tolist()
  0.125
  """

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
  """Names of all purifiers.

  >>> {"impress", "jpeg", "diffpure"} <= set(available())
  True
  """
  return registry.available(_PACKAGE)


def uses_prior(name: str, options: Mapping[str, Any]) -> bool:
  """Returns whether a method, or one of a chain, takes a purifier model of its own.

  A chain has one model for all of its methods.

  Args:
    name: a module of this package.
    options: its options.

  >>> uses_prior("gridpure", {}), uses_prior("impress", {})
  (True, False)
  >>> uses_prior("chain", {"methods": [{"name": "jpeg"}, {"name": "diffpure"}]})
  True
  """
  if name == "chain":
    return any(uses_prior(m.get("name", ""), m) for m in options.get("methods") or ())
  return name in PRIORS


def build(name: str, model: DiffusionModel | None, options: dict[str, Any]) -> Purifier:
  """Makes the purifier `name`.

  Args:
    name: a module of this package.
    model: the model for diffusion and autoencoder methods; other methods accept None.
    options: options of the constructor. An option that ends in `_255` is in 8-bit levels; it sets
      the option without the suffix, divided by 255.

  Raises:
    ConfigError: the purifier is unknown, an option is unknown, missing or unusable, or the method
      needs a model and there is none.
    MissingDataError: the weights of a perceptual distance are missing.

  >>> build("gaussian_noise", None, {"std_255": 5}).needs_model
  False
  """
  function, what = registry.constructor(_PACKAGE, name), f"purifier {name}"
  scaled = registry.scaled(options, what)
  registry.check_options(function, what, scaled)
  ranges.check(function, name, scaled)
  return registry.make(function, what, model, options=scaled)


def need_model(model: DiffusionModel | None, name: str) -> DiffusionModel:
  """Raises ConfigError unless there is a model.

  >>> need_model(None, "diffpure")
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier diffpure works with a diffusion model: give --model=FOLDER
  """
  if model is None:
    raise ConfigError(f"purifier {name} works with a diffusion model: give --model=FOLDER")
  return model


def need_autoencoder(model: DiffusionModel | None, name: str) -> tuple[DiffusionModel, int]:
  """Returns the model and its pixels per latent; raises ConfigError without an autoencoder.

  >>> from udp_jax.models import toy
  >>> need_autoencoder(toy.on_latents(), "impress")[1]
  2
  """
  model = need_model(model, name)
  if model.reconstruct is None:
    raise ConfigError(f"purifier {name} works with an autoencoder: give a latent diffusion model")
  return model, model.image_shape[0] // model.shape[0]


def mirrored_to_multiple(images: jax.Array, multiple: int) -> jax.Array:
  """Extends (B, H, W, C) by mirroring at the bottom and the right, to multiples of `multiple`.

  >>> mirrored_to_multiple(jnp.zeros((1, 13, 10, 3)), 8).shape
  (1, 16, 16, 3)
  """
  height, width = images.shape[1:3]
  padding = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
  return jnp.pad(images, padding, mode="symmetric")


def picture_keys(key: jax.Array, ids: jax.Array | np.ndarray) -> jax.Array:
  """Returns keys (B,) for the pictures with these ids (B,), for `Purifier.apply`.

  >>> picture_keys(jax.random.key(0), np.array([3, 8])).shape
  (2,)
  """
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
  """Purifies one batch; a method in steps runs as compiled calls of several steps.

  Args:
    purifier: a method from `build`.
    params: its parameters, from `purifier.init`.
    keys: (B,), one per picture.
    images: (B, H, W, 3) float in [0, 1].
    mesh: devices to split the batch over; B is a multiple of their number. Devices do not wait for
      each other.
    steps_per_call: largest number of steps in one call; the largest divisor of the number of steps
      is used, so that one program is compiled.
    on_progress: called with (steps done, losses (B,) of the last step) for each finished call,
      while the next one runs.

  Returns:
    Purified images (B, H, W, 3) in [0, 1], and the losses (num_steps, B), or (0, B) without steps.

  Raises:
    DivergedError: a final loss is not finite.

  >>> keys = picture_keys(jax.random.key(0), np.arange(2))
  >>> noise = build("gaussian_noise", None, {"std": 0.1})
  >>> images, losses = run(noise, {}, keys, jnp.full((2, 8, 8, 3), 0.5))
  >>> images.shape, losses.shape
  ((2, 8, 8, 3), (0, 2))
  """
  if purifier.iteration is None:
    return _apply(purifier, mesh, params, keys, images), np.zeros((0, len(images)), np.float32)
  total = purifier.iteration.num_steps
  length = max(n for n in range(1, max(1, min(steps_per_call, total)) + 1) if total % n == 0)
  state = _start(purifier, mesh, params, keys, images)
  losses: list[jax.Array] = []
  for _ in range(total // length):
    state, some = _advance(purifier, mesh, length, params, images, state)
    # Fetch the losses of the previous call while this one runs.
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


_EACH = PartitionSpec(mesh_lib.AXES)


def _split(function: Callable, mesh: Mesh | None, out: Any = _EACH) -> Callable:
  """`function(params, ...)` with all arguments but the first split over the mesh, if there is one.

  The partitioner cannot do this: it cannot see into a host callback and would gather the batch.
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
  out = (_EACH, PartitionSpec(None, mesh_lib.AXES))
  return _split(steps, mesh, out)(params, images, state)


@partial(jax.jit, static_argnums=(0, 1))
def _finish(purifier: Purifier, mesh: Mesh | None, params, images, state):
  assert purifier.iteration is not None
  return _split(purifier.iteration.finish, mesh)(params, images, state)


class Batching(NamedTuple):
  """How much is computed at a time; this changes memory and speed, but not the result.

  Attributes:
    per_device_batch_size: pictures that a device works on at a time.
    mesh: devices; None for the first device only.
    steps_per_call: largest number of steps in one compiled call.
  """

  per_device_batch_size: int = 8
  mesh: Mesh | None = None
  steps_per_call: int = 50


def purify(
  purifier: Purifier,
  params: Params,
  key: jax.Array,
  images: np.ndarray,
  ids: Sequence[int] | np.ndarray,
  batching: Batching = Batching(),
  *,
  on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
  """Purifies pictures of one size, from 8 bits to 8 bits.

  Args:
    purifier: a method from `build`.
    params: its parameters, from `purifier.init`.
    key: decides every draw, together with the pictures' ids.
    images: (N, H, W, 3) uint8.
    ids: (N,) numbers in [0, 2^32), each picture's id for random draws.
    batching: pictures and steps to compute at a time; changes only memory and speed.
    on_progress: called with the number of pictures done, fractions included.

  Returns:
    (N, H, W, 3) uint8.

  >>> from udp_jax.purifiers import gaussian_blur
  >>> blur = gaussian_blur.gaussian_blur(None, sigma=1.0)
  >>> clean = np.full((2, 8, 8, 3), 100, np.uint8)
  >>> int(purify(blur, {}, jax.random.key(0), clean, [0, 1]).max())
  100
  """
  per_device_batch_size, mesh, steps_per_call = batching
  count = len(images)
  devices = 1 if mesh is None else mesh.size
  # The smallest number of batches, all of one size, to have less padding.
  size = -(-count // (devices * -(-count // (per_device_batch_size * devices)))) * devices
  keys = picture_keys(key, np.asarray(ids, np.uint32))
  if mesh is not None:
    params = mesh_lib.replicate(params, mesh)
  out = np.empty_like(images)
  for start in range(0, count, size):
    # Repeats fill the last batch, so that only one size is compiled.
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
