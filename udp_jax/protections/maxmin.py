"""The max-min loop: alternating (bilevel), or with one backward pass for both sides (joint)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from udp_jax.data import batches
from udp_jax.data.batches import Batch
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import Params
from udp_jax.models.trainable import Trainable
from udp_jax.objectives import training
from udp_jax.objectives.base import Objective
from udp_jax.objectives.training import TrainState
from udp_jax.ops import control
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections.base import (
  PERTURB,
  TRAIN,
  BandedState,
  Info,
  PGDState,
  Protection,
  Rounds,
  over_batches,
  started,
  stepped,
)
from udp_jax.protections.constraints import Constraint
from udp_jax.protections.spectrum import Variable


class BilevelState(NamedTuple):
  """State of a max-min loop: the perturbations of the whole data set, and the surrogate."""

  inner: PGDState | BandedState
  surrogate: TrainState
  round: jax.Array

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def bilevel(
  inner: Protection,
  train_objective: Objective,
  tx: optax.GradientTransformation,
  rounds: Rounds,
  *,
  init_params: Callable[[jax.Array], Params],
  hold: Callable[[Params], Params] | None = None,
  trainable: Trainable | None = None,
) -> Protection:
  """The max-min loop: max over delta of min over the surrogate's weights.

  A round is `train_steps` optimiser steps of the surrogate on protected pictures, then
  `perturb_steps` updates of `inner` for every batch with the surrogate fixed.

  Args:
    inner: a protection of one batch, usually `pgd`.
    train_objective: the loss that the surrogate's weights minimise, averaged over pictures.
    tx: the surrogate's optimiser.
    rounds: number of steps in a round, and which rounds warm up or restart.
    init_params: key -> fresh surrogate parameters, used if `init` gets none, and at restarts.
    hold: `DiffusionModel.hold`: prepares the parameters once for all perturb steps of a round.
    trainable: the part of the parameters that the surrogate trains; None for the denoiser. The
      other parameters come from the `params` of `update`.

  >>> from udp_jax.protections import constraints
  >>> from udp_jax.protections.base import pgd, sign_descent
  >>> from udp_jax.objectives.base import negate
  >>> def distance(params, images, cond, keys):
  ...   return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}
  >>> start = lambda key: {"grey": jnp.float32(0.1)}
  >>> inner = pgd(negate(distance), constraints.linf(0.1), sign_descent(0.04))
  >>> method = bilevel(inner, distance, optax.adam(0.1), Rounds(4, 2), init_params=start)
  >>> method.phases == (TRAIN, PERTURB), method.perturb_steps
  (True, 2)
  """
  train_steps, perturb_steps, warmup_rounds, restart_every = rounds
  trainable = trainable or trainable_lib.denoiser()
  perturb = over_batches(inner, num_steps=perturb_steps, hold=hold)

  def init(key: jax.Array, data: Batch, params: Params | None) -> BilevelState:
    # A copy, because every round donates the state but not the caller's parameters.
    theta = _theta(trainable, init_params, stream(key, "surrogate"), params)
    deltas = perturb.init(stream(key, "start"), data, trainable.merge(theta, params))
    return BilevelState(deltas, training.init_state(theta, tx), jnp.zeros((), jnp.int32))

  def restart(key: jax.Array, state: BilevelState, params: Params | None) -> TrainState:
    key = jax.random.fold_in(stream(key, "surrogate"), state.round)
    fresh = trainable.init(key, init_params(key) if params is None else params)
    return training.init_state(fresh, tx)._replace(step=state.surrogate.step)

  def trained(
    key: jax.Array, state: BilevelState, data: Batch, params: Params | None
  ) -> tuple[TrainState, jax.Array]:
    surrogate = state.surrogate
    if restart_every:
      due = (state.round > 0) & (state.round % restart_every == 0)
      surrogate = control.run_if(due, lambda _: restart(key, state, params), surrogate)
    step = training.make_update(training.of_theta(train_objective, trainable, params), tx)
    return training.train_steps(
      step, stream(key, "train"), surrogate, data, train_steps, delta=state.delta
    )

  def perturbed(key: jax.Array, inner_state: PGDState, data: Batch, params: Params):
    result, info = perturb.update(stream(key, "perturb"), inner_state, data, params)
    return result, info.loss

  def update(key: jax.Array, state: BilevelState, data: Batch, params: Params | None, phase=None):
    surrogate, train_loss = control.run_if(
      None if phase is None else phase != PERTURB,
      lambda carry: trained(key, state._replace(surrogate=carry[0]), data, params),
      (state.surrogate, jnp.full((train_steps,), jnp.nan)),
    )
    warm = None if not warmup_rounds else state.round >= warmup_rounds
    if phase is not None:
      warm = (phase != TRAIN) if warm is None else warm & (phase != TRAIN)
    attacked = trainable.merge(surrogate.params, params)
    inner_state, loss = control.run_if(
      warm,
      lambda carry: perturbed(key, carry[0], data, attacked),
      (state.inner, jnp.full(data.ids.shape, jnp.nan)),
    )
    done = 1 if phase is None else (phase != TRAIN).astype(jnp.int32)
    return BilevelState(inner_state, surrogate, state.round + done), Info(loss, train_loss)

  return Protection(init, update, phases=(TRAIN, PERTURB), perturb_steps=perturb_steps)


def _theta(
  trainable: Trainable,
  init_params: Callable[[jax.Array], Params],
  key: jax.Array,
  params: Params | None,
) -> Params:
  """The trained part of `params`, or a fresh one; a copy, because the state is donated."""
  return trainable.init(key, init_params(key) if params is None else params)


def joint(
  objective: Objective,
  tx: optax.GradientTransformation,
  constraint: Constraint,
  ascent: optax.GradientTransformation,
  *,
  init_params: Callable[[jax.Array], Params],
  train_steps: int,
  trainable: Trainable | None = None,
) -> Protection:
  """The max-min loop at half the cost: one backward pass gives both gradients.

  As in "free" adversarial training (Shafahi et al., arXiv:1904.12843), every training step also
  moves the perturbations of its pictures, against the weights before the step. A round is
  `train_steps` such steps, so each picture takes train_steps / num_batches steps per round.

  Args:
    objective: minimised over weights (averaged) and maximised over delta (summed), with the same
      draws and the same distribution over timesteps.
    tx: the surrogate's optimiser.
    constraint: the budget of delta.
    ascent: turns the *negated* gradient of delta into a step; stateless, e.g. `sign_descent`.
    init_params: key -> fresh surrogate parameters, used if `init` gets none.
    train_steps: steps in each round.
    trainable: the part of the parameters that the surrogate trains; None for the denoiser. The
      other parameters come from the `params` of `update`.

  Raises:
    ValueError: `ascent` has a state.

  >>> from udp_jax.protections import constraints
  >>> from udp_jax.protections.base import sign_descent
  >>> def distance(params, images, cond, keys):
  ...   return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}
  >>> start = lambda key: {"grey": jnp.float32(0.1)}
  >>> method = joint(
  ...   distance,
  ...   optax.adam(0.1),
  ...   constraints.linf(0.1),
  ...   sign_descent(0.04),
  ...   init_params=start,
  ...   train_steps=4,
  ... )
  >>> data = batches.make_batches(jnp.full((2, 4, 4, 3), 128, jnp.uint8), 2)
  >>> method.init(jax.random.key(0), data, None).delta.shape
  (1, 2, 4, 4, 3)
  """
  if jax.tree.leaves(ascent.init(jnp.zeros(1))):
    raise ValueError("joint steps visit pictures in no fixed batches: `ascent` must keep no state")
  trainable = trainable or trainable_lib.denoiser()

  def init(key: jax.Array, data: Batch, params: Params | None) -> BilevelState:
    theta = _theta(trainable, init_params, stream(key, "surrogate"), params)

    def start(batch: Batch) -> tuple[jax.Array, Variable | None]:
      return started(constraint, example_keys(stream(key, "start"), 0, batch.ids), batch)

    delta, variable = jax.lax.map(start, data)
    steps = jnp.zeros(data.ids.shape[0], jnp.int32)
    inner = BandedState.of(delta, ascent.init(delta), steps, variable)
    return BilevelState(inner, training.init_state(theta, tx), jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: BilevelState, data: Batch, params: Params | None, phase=None):
    del phase  # A joint step has no parts.
    merged = training.of_theta(objective, trainable, params)
    num_batches, lanes = data.ids.shape
    shuffle, draws = stream(key, "shuffle"), stream(key, "draws")

    def step(carry: tuple[TrainState, tuple[jax.Array, Variable | None], jax.Array], _):
      surrogate, moving, seen = carry
      rows = batches.take_rows(shuffle, surrogate.step, num_batches, lanes)
      batch, (delta_batch, variable) = batches.take((data, moving), rows)
      images = to_float(batch.images)
      keys = example_keys(draws, surrogate.step, batch.ids)

      def total(theta: Params, delta: jax.Array):
        losses, _ = merged(theta, images + delta, batch.cond, keys)
        return jnp.sum(losses * batch.weight), losses

      gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
      (loss, losses), (gradients, ascending) = gradient(surrogate.params, delta_batch)
      surrogate, loss = training.apply_gradients(tx, surrogate, gradients, loss, batch.weight)
      at = BandedState.of(delta_batch, ascent.init(delta_batch), state.inner.step, variable)
      moved = stepped(constraint, ascent, at, -ascending, batch)
      kept = moved.delta, moved.variable
      moving = jax.tree.map(lambda leaf, own: batches.put(leaf, rows, own), moving, kept)
      return (surrogate, moving, batches.put(seen, rows, -losses)), loss

    # Pictures that no step of this round visits report NaN.
    moving = state.inner.delta, state.inner.variable
    carry = state.surrogate, moving, jnp.full(data.ids.shape, jnp.nan)
    (surrogate, (delta, variable), seen), train_loss = jax.lax.scan(
      step, carry, None, length=train_steps
    )
    inner = BandedState.of(delta, state.inner.opt_state, state.inner.step + 1, variable)
    return BilevelState(inner, surrogate, state.round + 1), Info(seen, train_loss)

  return Protection(init, update)
