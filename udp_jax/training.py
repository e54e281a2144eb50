"""Training a model's weights on device-resident pictures, as one compiled scan.

Data are `Batch`es whose leaves have two leading axes, (num_batches, global_batch, ...). A step
takes one picture from every lane (position in the batch) by a permutation of the lane's own
pictures: a fresh shuffle every epoch that moves nothing across devices when the batch axis is
sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from udp_jax.models.base import Params
from udp_jax.objectives import Objective
from udp_jax.ops.image import to_float
from udp_jax.randomness import example_keys, stream


class Batch(NamedTuple):
  """Pictures and what goes with them; every leaf has the same leading axes.

  Attributes:
    images: (..., H, W, C) uint8, the clean 8-bit pictures.
    ids: (...,) int32, a picture's number in the data set: its identity for randomness.
    weight: (...,) float32, 1, or 0 for the padding of the last batch.
    cond: conditioning of the model, or None.
    reference: (..., H, W, C) uint8, the same pictures protected by another method, for the controls
      that imitate it; otherwise None.
    mask: (..., H, W, 1) uint8, 1 where a perturbation may be, 0 elsewhere; None for everywhere.
    limit: (..., H, W, 1) uint8, the largest change of a pixel in 8-bit levels, where it is less
      than the method's radius; None where the radius is all.
    grey: (...,) uint8, 1 for a grey picture, whose perturbation is one and the same in all
      channels, 0 for others; None where no picture is grey.
  """

  images: jax.Array | np.ndarray
  ids: jax.Array | np.ndarray
  weight: jax.Array | np.ndarray
  cond: Any = None
  reference: jax.Array | np.ndarray | None = None
  mask: jax.Array | np.ndarray | None = None
  limit: jax.Array | np.ndarray | None = None
  grey: jax.Array | np.ndarray | None = None


class TrainState(NamedTuple):
  """What training carries from step to step; `ema_params` is None where no average is kept."""

  step: jax.Array
  params: Params
  ema_params: Params | None
  opt_state: optax.OptState


def make_batches(images: np.ndarray, global_batch_size: int, **extra: np.ndarray | None) -> Batch:
  """Arranges pictures (N, H, W, C) as (ceil(N / B), B, H, W, C), padded with weight-0 repeats.

  A batch larger than the data set shrinks to it. `extra` are further leaves of `Batch` (N, ...).
  """
  count = len(images)
  size = min(global_batch_size, count)
  num_batches = -(-count // size)
  padded = np.arange(num_batches * size)
  order = padded % count

  def arrange(leaf: np.ndarray | None) -> np.ndarray | None:
    return None if leaf is None else leaf[order].reshape(num_batches, size, *leaf.shape[1:])

  arranged: dict[str, Any] = {name: arrange(leaf) for name, leaf in extra.items()}
  return Batch(
    images=images[order].reshape(num_batches, size, *images.shape[1:]),
    ids=padded.astype(np.int32).reshape(num_batches, size),
    weight=(padded < count).astype(np.float32).reshape(num_batches, size),
    **arranged,
  )


def unbatch(leaf: jax.Array | np.ndarray, count: int) -> np.ndarray:
  """Undoes `make_batches` for one leaf: (num_batches, B, ...) -> (count, ...)."""
  leaf = np.asarray(leaf)
  return leaf.reshape(-1, *leaf.shape[2:])[:count]


def take_rows(key: jax.Array, step: jax.Array, num_batches: int, lanes: int) -> jax.Array:
  """Which picture of each lane a training step takes: every one of them once an epoch.

  Args:
    key: of the shuffling stream.
    step: (), counts over epochs.
    num_batches: pictures of each lane.
    lanes: global batch size.

  Returns:
    (lanes,), rows of the leading axis.
  """
  epoch_key = jax.random.fold_in(key, step // num_batches)

  def row(lane: jax.Array) -> jax.Array:
    permutation = jax.random.permutation(jax.random.fold_in(epoch_key, lane), num_batches)
    return permutation[step % num_batches]

  return jax.vmap(row)(jnp.arange(lanes))


def take(data: Any, rows: jax.Array) -> Any:
  """Leaves (num_batches, lanes, ...) -> (lanes, ...), row `rows[i]` of lane i."""
  return jax.tree.map(lambda leaf: jax.vmap(lambda x, r: x[r], (1, 0))(leaf, rows), data)


def put(leaf: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
  """The inverse of `take` for one leaf: `leaf` with row `rows[i]` of lane i set to values[i]."""
  return jax.vmap(lambda x, r, v: x.at[r].set(v), (1, 0, 0), 1)(leaf, rows, values)


def init_state(
  params: Params, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
  """A fresh state; with `ema`, the average starts as a copy of `params`."""
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, average, tx.init(params))


def make_update(
  objective: Objective, tx: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[[jax.Array, TrainState, Batch, jax.Array | None], tuple[TrainState, jax.Array]]:
  """One optimiser step on the weighted mean loss.

  Returns:
    update(key, state, batch, delta) -> (state, loss). `batch` leaves (B, ...); `delta` (B, H, W, C)
    is added to the pictures, None for none.
  """

  def update(key: jax.Array, state: TrainState, batch: Batch, delta: jax.Array | None):
    keys = example_keys(key, state.step, batch.ids)
    images = to_float(batch.images)
    images = images if delta is None else images + delta

    def total(params: Params) -> jax.Array:
      losses, _ = objective(params, images, batch.cond, keys)
      return jnp.sum(losses * batch.weight)

    loss, gradients = jax.value_and_grad(total)(state.params)
    return apply_gradients(tx, state, gradients, loss, batch.weight, ema_decay=ema_decay)

  return update


def apply_gradients(
  tx: optax.GradientTransformation,
  state: TrainState,
  gradients: Params,
  loss: jax.Array,
  weight: ArrayLike,
  *,
  ema_decay: float = 0.0,
) -> tuple[TrainState, jax.Array]:
  """One optimiser step on gradients of a *sum* of losses; returns the state and the mean loss.

  Args:
    tx: optimiser.
    state: before the step.
    gradients: of the sum of weighted losses.
    loss: (), that sum.
    weight: (B,), of the pictures.
    ema_decay: of the averaged parameters, where the state keeps some.
  """
  # Divided only now, so that devices meet once: for gradients, loss and count together.
  count = jnp.maximum(jnp.sum(jnp.asarray(weight)), 1.0)
  loss, gradients = jax.tree.map(lambda leaf: leaf / count, (loss, gradients))
  updates, opt_state = tx.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.ema_params
  if average is not None:
    # As in Ho et al.'s code and its successors: a short memory first, so that few steps suffice.
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
  return TrainState(state.step + 1, params, average, opt_state), loss


def train_steps(
  update: Callable, key: jax.Array, state: TrainState, data: Batch, num_steps: int, *, delta=None
) -> tuple[TrainState, jax.Array]:
  """`num_steps` updates by `lax.scan`; returns the state and the losses (num_steps,).

  Args:
    update: from `make_update`.
    key: root of the training stream; draws depend on it and on `state.step` alone.
    state: where to start.
    data: leaves (num_batches, B, ...).
    num_steps: static.
    delta: (num_batches, B, H, W, C), added to the pictures, or None.
  """
  num_batches, lanes = data.images.shape[:2]
  shuffle, draws = stream(key, "shuffle"), stream(key, "draws")

  def body(state: TrainState, _):
    rows = take_rows(shuffle, state.step, num_batches, lanes)
    batch, delta_batch = take((data, delta), rows)
    return update(draws, state, batch, delta_batch)

  return jax.lax.scan(body, state, None, length=num_steps)
