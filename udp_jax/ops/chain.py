"""The chain that every sampler is: timesteps, a start, a scan of steps, and regions held fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops import schedules
from udp_jax.ops.schedules import NoiseSchedule

Predict = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[jax.Array, jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]

SPACINGS = ("leading", "trailing", "linspace")


class Known(NamedTuple):
  """A region that a chain keeps, for inpainting with a model that was not trained for it.

  After every step the region is replaced by the known x0, noised to the timestep that the chain has
  reached (Lugmayr et al. 2022, arXiv:2201.09865, equation 8, without its repetitions).

  Attributes:
    x0: (B, ...) on the model's range.
    mask: broadcastable to x0; 1 where the chain paints, 0 where x0 is kept.
    noise: (B, ...) standard normal, the same at every step.
  """

  x0: jax.Array
  mask: jax.Array
  noise: jax.Array


def spaced_timesteps(
  num_train_steps: int,
  num_steps: int,
  *,
  spacing: str = "leading",
  steps_offset: int = 0,
  skip_last: bool = False,
) -> np.ndarray:
  """The timesteps a sampler visits, descending (Lin et al. 2023, table 2).

  Args:
    num_train_steps: T, the length of the noise schedule.
    num_steps: how many of them to visit, at most T.
    spacing: "leading" (multiples of T // num_steps, from 0), "trailing" (steps back from T - 1) or
      "linspace" (both ends included).
    steps_offset: added to "leading" timesteps; Stable Diffusion uses 1.
    skip_last: place "leading" and "linspace" timesteps as for one step more and leave out the last,
      as multistep solvers do: their last step goes from there to the data.

  Returns:
    (num_steps,) int32 in [0, T).

  Raises:
    ValueError: for an unknown spacing, a num_steps outside [1, T], an offset that leaves the
      schedule, or a num_steps so awkward that strides of T // num_steps leave out over a quarter of
      the schedule: samples would still be full of noise.
  """
  if spacing not in SPACINGS:
    raise ValueError(f"spacing {spacing!r} is not one of {SPACINGS}")
  skipped = int(skip_last and spacing != "trailing")
  placed = num_steps + skipped
  if not 1 <= num_steps <= num_train_steps - skipped:
    raise ValueError(f"num_steps must be in [1, {num_train_steps - skipped}], got {num_steps}")
  stride = num_train_steps // placed
  if 4 * stride * placed < 3 * num_train_steps:
    raise ValueError(
      f"num_steps={num_steps} in strides of {stride} covers {stride * placed} of "
      f"{num_train_steps} timesteps; use "
      f"{num_train_steps // (stride + 1) - skipped} or {num_train_steps // stride - skipped} steps"
    )
  if spacing == "leading":
    steps = np.arange(placed, dtype=np.float64)[::-1] * stride + steps_offset
  elif spacing == "trailing":
    # By index, not by repeated subtraction, so that there are exactly num_steps of them.
    ratio = num_train_steps / num_steps
    steps = np.round(num_train_steps - np.arange(num_steps) * ratio) - 1
  else:
    steps = np.round(np.linspace(0, num_train_steps - 1, placed))[::-1]
  steps = steps[:num_steps]
  if steps.min() < 0 or steps.max() >= num_train_steps:
    raise ValueError(f"steps_offset={steps_offset} moves timesteps out of [0, {num_train_steps})")
  return steps.astype(np.int32)


def start_step(num_steps: int, strength: float) -> int:
  """Where a chain starts from a given picture instead of from noise (SDEdit, arXiv:2108.01073).

  Args:
    num_steps: steps of the whole chain.
    strength: in (0, 1]; 1 runs the whole chain, and little is left of the picture.

  Returns:
    The index of the first step; noise x0 to that timestep (`schedules.add_noise`).

  Raises:
    ValueError: for a strength outside (0, 1], or one that leaves no step.
  """
  if not 0.0 < strength <= 1.0:
    raise ValueError(f"strength must be in (0, 1], got {strength}")
  count = int(num_steps * strength)
  if count == 0:
    raise ValueError(f"strength={strength} of {num_steps} steps leaves none: raise one of the two")
  return num_steps - count


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal noise (B, ...) float32, from one key, or from keys (B,), one a picture."""
  if _one_each(key):
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:], jnp.float32))(key)
  return jax.random.normal(key, shape, jnp.float32)


def _one_each(key: jax.Array) -> bool:
  """Whether these are keys (B,), and not one (whose old form is a vector of numbers)."""
  return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def _fold(key: jax.Array, number: jax.Array | int) -> jax.Array:
  fold = jax.random.fold_in
  return jax.vmap(lambda key: fold(key, number))(key) if _one_each(key) else fold(key, number)


def run(
  key: jax.Array,
  predict: Predict,
  step: Step,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  timesteps: np.ndarray,
  *,
  rows: Any = None,
  remember: bool = False,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Scans `step` over the timesteps; a step's noise depends on the key and its index alone.

  Args:
    key: a PRNG key; or keys (B,), one a picture: no picture's chain depends on another's then.
    predict: (x_t, timesteps (B,)) -> the network's prediction.
    step: (key, x_t, prediction, row, memory) -> (x at the next timestep, memory).
    schedule: the noise schedule.
    x_init: the shape (B, ...) to sample from pure noise, or x_t at `timesteps[first_step]`.
    timesteps: (num_steps,), descending.
    rows: arrays with a leading axis of num_steps; a step gets its own entries.
    remember: give steps a memory of x_t's shape, zeros at first; None otherwise.
    first_step: index where the chain starts; needs an array x_init.
    known: a region to keep.

  Returns:
    (B, ...) float32.

  Raises:
    ValueError: for a first_step outside the chain, or one above 0 without an x_t.
  """
  if not 0 <= first_step < len(timesteps):
    raise ValueError(f"first_step must be in [0, {len(timesteps)}), got {first_step}")
  if _one_each(key):
    init_key, steps_key = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
  else:
    init_key, steps_key = jax.random.split(key)
  if isinstance(x_init, tuple):
    if first_step:
      raise ValueError("a chain that starts at first_step > 0 needs x_t, not a shape")
    x_init = normal(init_key, x_init)
  x_init = jnp.asarray(x_init, jnp.float32)

  def body(carry: tuple[jax.Array, Any], at: Any) -> tuple[tuple[jax.Array, Any], None]:
    (x_t, memory), (index, timestep, following, row) = carry, at
    prediction = predict(x_t, jnp.full(x_t.shape[:1], timestep))
    x_t, memory = step(_fold(steps_key, index), x_t, prediction, row, memory)
    if known is not None:
      noised = schedules.add_noise(schedule, known.x0, known.noise, jnp.maximum(following, 0))
      kept = jnp.where(following < 0, known.x0, noised)
      x_t = known.mask * x_t + (1.0 - known.mask) * kept
    return (x_t, memory), None

  indices = np.arange(len(timesteps), dtype=np.int32)
  following = np.append(timesteps[1:], np.int32(-1))
  at = (indices, timesteps, following, rows)
  at = jax.tree.map(lambda values: jnp.asarray(values[first_step:]), at)
  memory = jnp.zeros_like(x_init) if remember else None
  return jax.lax.scan(body, (x_init, memory), at)[0][0]
