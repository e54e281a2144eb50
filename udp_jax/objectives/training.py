"""Training a model's weights on device-resident pictures, as one compiled scan.

Data are `Batch`es whose leaves have two leading axes, (num_batches, global_batch, ...). A step
takes one picture from every lane (position in the batch), in an order that permutes the lane's own
pictures: a new shuffle for every epoch that moves nothing across devices when the batch axis is
sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from udp_jax.data import batches
from udp_jax.data.batches import Batch
from udp_jax.models.base import Params
from udp_jax.models.trainable import Trainable
from udp_jax.objectives.base import Objective
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream


class TrainState(NamedTuple):
  """State of training between steps; `ema_params` is None if no average is kept."""

  step: jax.Array
  params: Params
  ema_params: Params | None
  opt_state: optax.OptState


def init_state(
  params: Params, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
  """Returns the state at step 0; with `ema`, the average starts as a copy of `params`.

  >>> state = init_state({"w": jnp.ones(3)}, optax.sgd(0.1), ema=True)
  >>> int(state.step), state.ema_params["w"].tolist()
  (0, [1.0, 1.0, 1.0])
  """
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, average, tx.init(params))


def make_update(
  objective: Objective, tx: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Callable[[jax.Array, TrainState, Batch, jax.Array | None], tuple[TrainState, jax.Array]]:
  """Returns a function that takes one optimiser step on the weighted mean loss.

  Returns:
    update(key, state, batch, delta) -> (state, loss). Leaves of `batch` are (B, ...); `delta`
    (B, H, W, C) is added to the pictures unless it is None.

  >>> def distance(params, images, cond, keys):
  ...   return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}
  >>> data = batches.make_batches(jnp.full((4, 2, 2, 3), 255, jnp.uint8), 2)
  >>> tx, key = optax.sgd(0.5), jax.random.key(0)
  >>> state = init_state({"grey": jnp.float32(0.0)}, tx)
  >>> batch = jax.tree.map(lambda leaf: leaf[0], data)
  >>> state, loss = make_update(distance, tx)(key, state, batch, None)
  >>> round(float(loss), 5), round(float(state.params["grey"]), 5)
  (1.0, 1.0)
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
  """Takes one step on gradients of a *sum* of losses; returns the state and the mean loss.

  Args:
    tx: the optimiser.
    state: the state before the step.
    gradients: gradients of the sum of weighted losses.
    loss: (), the sum of weighted losses.
    weight: (B,), weights of the pictures; 0 for padding.
    ema_decay: decay of the averaged parameters, if the state has them.

  >>> tx = optax.sgd(0.5)
  >>> state = init_state({"w": jnp.float32(1.0)}, tx)
  >>> weight = jnp.array([1.0, 1.0, 0.0, 0.0])  # Two pictures, and two of padding.
  >>> state, loss = apply_gradients(tx, state, {"w": jnp.float32(2.0)}, jnp.float32(6.0), weight)
  >>> float(state.params["w"]), float(loss)
  (0.5, 3.0)
  """
  # Divided only here, so that devices communicate once for gradients, loss and count together.
  count = jnp.maximum(jnp.sum(jnp.asarray(weight)), 1.0)
  loss, gradients = jax.tree.map(lambda leaf: leaf / count, (loss, gradients))
  updates, opt_state = tx.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.ema_params
  if average is not None:
    # The warm-up of diffusers' EMAModel: a short memory at first, so that few steps suffice. (Ho et
    # al. keep their decay constant.)
    step = jnp.asarray(state.step, jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
  return TrainState(state.step + 1, params, average, opt_state), loss


def train_steps(
  update: Callable, key: jax.Array, state: TrainState, data: Batch, num_steps: int, *, delta=None
) -> tuple[TrainState, jax.Array]:
  """Runs `num_steps` updates by `lax.scan`; returns the state and the losses (num_steps,).

  Args:
    update: one step, from `make_update`.
    key: root of the training stream; draws depend only on it and on `state.step`.
    state: the state before the first step.
    data: pictures, leaves (num_batches, B, ...).
    num_steps: number of steps, static.
    delta: (num_batches, B, H, W, C), added to the pictures, or None.

  >>> def distance(params, images, cond, keys):
  ...   return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}
  >>> data = batches.make_batches(jnp.full((4, 2, 2, 3), 255, jnp.uint8), 2)
  >>> tx, key = optax.sgd(0.5), jax.random.key(0)
  >>> state = init_state({"grey": jnp.float32(0.0)}, tx)
  >>> state, losses = train_steps(make_update(distance, tx), key, state, data, 3)
  >>> [round(loss, 5) for loss in losses.tolist()]
  [1.0, 0.0, 0.0]
  """
  num_batches, lanes = data.images.shape[:2]
  shuffle, draws = stream(key, "shuffle"), stream(key, "draws")

  def body(state: TrainState, _):
    rows = batches.take_rows(shuffle, state.step, num_batches, lanes)
    batch, delta_batch = batches.take((data, delta), rows)
    return update(draws, state, batch, delta_batch)

  return jax.lax.scan(body, state, None, length=num_steps)


def of_theta(objective: Objective, trainable: Trainable, params: Params | None) -> Objective:
  """`objective` as a function of only the trained part of the parameters.

  >>> from udp_jax.models import trainable
  >>> brightness = lambda params, images, cond, keys: (params["unet"] * images.mean((1, 2, 3)), {})
  >>> of_unet = of_theta(brightness, trainable.part("unet"), {"unet": 1.0, "vae": 2.0})
  >>> of_unet(3.0, jnp.ones((1, 2, 2, 3)), None, None)[0].tolist()
  [3.0]
  """
  return lambda theta, *rest: objective(trainable.merge(theta, params), *rest)
