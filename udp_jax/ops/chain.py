"""The chain shared by all samplers: timesteps, a start, a scan of steps, and fixed regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops import schedules
from udp_jax.ops.schedules import NoiseSchedule

VARIANCES = ("fixed_small", "fixed_large")

Predict = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[jax.Array, jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]

SPACINGS = ("leading", "trailing", "linspace")


class Steps(NamedTuple):
  """Selects the timesteps that a sampler visits; `spaced_timesteps` places them.

  Attributes:
    num_steps: number of steps in the whole chain; None visits all T timesteps.
    spacing: "leading", "trailing" or "linspace"; None uses the sampler's default.
    steps_offset: offset added to "leading" timesteps; Stable Diffusion uses 1.
  """

  num_steps: int | None = None
  spacing: str | None = None
  steps_offset: int = 0


class Solver(NamedTuple):
  """The step that `run` repeats, with its inputs; samplers differ only in this.

  Attributes:
    step: (key, x_t, prediction, row, memory) -> (x at the next timestep, memory).
    rows: pytree of arrays (num_steps, ...); step i gets entry i of each array as its `row`.
    remember: whether `memory` is an array of x_t's shape, initially zeros; otherwise it is None.
  """

  step: Step
  rows: Any = None
  remember: bool = False


class Known(NamedTuple):
  """A region that a chain keeps fixed, for inpainting with a model not trained for it.

  After every step the region is replaced by the known x0, noised to the current timestep (Lugmayr
  et al. 2022, arXiv:2201.09865, equation 8, without repetitions).

  Attributes:
    x0: (B, ...) in the model's range.
    mask: broadcastable to x0; 1 where the chain paints, 0 where x0 is kept.
    noise: (B, ...) standard normal; the same noise at every step.
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
  """Returns the timesteps that a sampler visits, descending (Lin et al. 2023, table 2).

  Args:
    num_train_steps: T, the length of the noise schedule.
    num_steps: number of timesteps to visit, at most T.
    spacing: "leading" (multiples of T // num_steps, from 0), "trailing" (steps back from T - 1) or
      "linspace" (both ends included).
    steps_offset: offset added to "leading" timesteps; Stable Diffusion uses 1.
    skip_last: whether to place "leading" and "linspace" timesteps as for one more step and leave
      out the last one, like multistep solvers, whose last step goes from there to the data.

  Returns:
    (num_steps,) int32 in [0, T).

  Raises:
    ValueError: the spacing is unknown, num_steps is outside [1, T], the offset leaves the schedule,
      or strides of T // num_steps leave out over a quarter of the schedule, so that samples would
      still be noisy.

  >>> spaced_timesteps(1000, 5).tolist()
  [800, 600, 400, 200, 0]
  >>> spaced_timesteps(1000, 5, spacing="trailing").tolist()
  [999, 799, 599, 399, 199]
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
    # Compute by index rather than repeated subtraction, to get exactly num_steps timesteps.
    ratio = num_train_steps / num_steps
    steps = np.round(num_train_steps - np.arange(num_steps) * ratio) - 1
  else:
    steps = np.round(np.linspace(0, num_train_steps - 1, placed))[::-1]
  steps = steps[:num_steps]
  if steps.min() < 0 or steps.max() >= num_train_steps:
    raise ValueError(f"steps_offset={steps_offset} moves timesteps out of [0, {num_train_steps})")
  return steps.astype(np.int32)


def spaced(
  schedule: NoiseSchedule, steps: Steps, default: str, *, skip_last: bool = False
) -> np.ndarray:
  """Returns `spaced_timesteps` of a schedule, with a default spacing.

  Args:
    schedule: the noise schedule, which defines T.
    steps: the timesteps to visit.
    default: spacing used if `steps` has none.
    skip_last: whether to leave out the last timestep, like multistep solvers.

  Returns:
    (num_steps,) int32 in [0, T), descending.

  >>> spaced(schedules.linear(), Steps(4), "trailing").tolist()
  [999, 749, 499, 249]
  """
  total = schedule.num_steps
  return spaced_timesteps(
    total,
    total if steps.num_steps is None else steps.num_steps,
    spacing=default if steps.spacing is None else steps.spacing,
    steps_offset=steps.steps_offset,
    skip_last=skip_last,
  )


def start_step(num_steps: int, strength: float) -> int:
  """Returns the first step of a chain that starts from a picture (SDEdit, arXiv:2108.01073).

  Args:
    num_steps: number of steps in the whole chain.
    strength: fraction of the chain to run, in (0, 1]; 1 keeps little of the picture.

  Returns:
    The index of the first step; noise x0 to that timestep (`schedules.add_noise`).

  Raises:
    ValueError: the strength is outside (0, 1], or leaves no step.

  >>> start_step(50, 0.6)
  20
  """
  if not 0.0 < strength <= 1.0:
    raise ValueError(f"strength must be in (0, 1], got {strength}")
  count = int(num_steps * strength)
  if count == 0:
    raise ValueError(f"strength={strength} of {num_steps} steps leaves none: raise one of the two")
  return num_steps - count


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws standard normal noise (B, ...) float32, from one key or from keys (B,), one per picture.

  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> normal(keys, (2, 8, 8, 3)).shape
  (2, 8, 8, 3)
  """
  if _one_each(key):
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:], jnp.float32))(key)
  return jax.random.normal(key, shape, jnp.float32)


def _one_each(key: jax.Array) -> bool:
  """Returns whether `key` holds keys (B,), rather than one key (possibly an old-style vector)."""
  return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def _fold(key: jax.Array, number: jax.Array | int) -> jax.Array:
  fold = jax.random.fold_in
  return jax.vmap(lambda key: fold(key, number))(key) if _one_each(key) else fold(key, number)


def run(
  key: jax.Array,
  predict: Predict,
  solver: Solver,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  timesteps: np.ndarray,
  *,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Scans the solver's step over the timesteps; a step's noise depends only on key and index.

  Args:
    key: one PRNG key for the batch, or keys (B,), one per image, which make the images' chains
      independent of each other.
    predict: (x_t, timesteps (B,)) -> the network's prediction.
    solver: the step and its inputs.
    schedule: the noise schedule, used to noise the region in `known`.
    x_init: a shape (B, ...), to start from pure noise, or x_t at `timesteps[first_step]`.
    timesteps: (num_steps,) int32, descending.
    first_step: index of the chain's first step; if above 0, x_init must be an array.
    known: the region to keep fixed, or None.

  Returns:
    (B, ...) float32.

  Raises:
    ValueError: first_step is outside the chain, or above 0 without an x_t.

  >>> take = Solver(lambda key, x_t, prediction, row, memory: (x_t - prediction, memory))
  >>> predict = lambda x_t, timesteps: 0.5 * x_t
  >>> x_t, visited = jnp.ones((1, 1)), np.array([2, 1, 0])
  >>> run(jax.random.key(0), predict, take, schedules.linear(10), x_t, visited).tolist()
  [[0.125]]
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

  if known is not None:
    mask = jnp.asarray(known.mask)
    mask = mask.reshape((1,) * (x_init.ndim - mask.ndim) + mask.shape)

  def body(carry: tuple[jax.Array, Any], at: Any) -> tuple[tuple[jax.Array, Any], None]:
    (x_t, memory), (index, timestep, following, row) = carry, at
    prediction = predict(x_t, jnp.full(x_t.shape[:1], timestep))
    x_t, memory = solver.step(_fold(steps_key, index), x_t, prediction, row, memory)
    if known is not None:
      noised = schedules.add_noise(schedule, known.x0, known.noise, jnp.maximum(following, 0))
      kept = jnp.where(following < 0, known.x0, noised)
      x_t = mask * x_t + (1.0 - mask) * kept
    return (x_t, memory), None

  indices = np.arange(len(timesteps), dtype=np.int32)
  following = np.append(timesteps[1:], np.int32(-1))
  at = (indices, timesteps, following, solver.rows)
  at = jax.tree.map(lambda values: jnp.asarray(values[first_step:]), at)
  memory = jnp.zeros_like(x_init) if solver.remember else None
  return jax.lax.scan(body, (x_init, memory), at)[0][0]
