"""The max-min loop: alternating (bilevel) or with one backward pass for both sides (joint)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from udp_jax import training
from udp_jax.constraints import Constraint
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import Params
from udp_jax.models.trainable import Trainable
from udp_jax.objectives import Objective
from udp_jax.ops.image import to_float
from udp_jax.protections.base import (
  PERTURB,
  TRAIN,
  Info,
  PGDState,
  Protection,
  allowed,
  along,
  over_batches,
)
from udp_jax.randomness import example_keys, stream
from udp_jax.training import Batch, TrainState


class BilevelState(NamedTuple):
  """State of a max-min loop: the perturbations of the whole data set, and the surrogate."""

  inner: PGDState
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
  *,
  init_params: Callable[[jax.Array], Params],
  train_steps: int,
  perturb_steps: int,
  warmup_rounds: int = 0,
  restart_every: int = 0,
  hold: Callable[[Params], Params] | None = None,
  trainable: Trainable | None = None,
) -> Protection:
  """The max-min loop: max over delta of min over the surrogate's weights.

  A round is `train_steps` optimiser steps of the surrogate on protected pictures, then
  `perturb_steps` updates of `inner` for every batch with the surrogate held still.

  Args:
    inner: a protection of one batch, usually `pgd`.
    train_objective: what the surrogate's weights descend (averaged over pictures).
    tx: the surrogate's optimiser.
    init_params: key -> fresh surrogate parameters, used when `init` gets none and at restarts.
    train_steps: of each round.
    perturb_steps: of each round, for every picture.
    warmup_rounds: first rounds without perturb steps, so that the surrogate knows something.
    restart_every: rounds after which the surrogate starts afresh; 0 for never.
    hold: see `over_batches`.
    trainable: the part of the parameters that the surrogate trains; None for the denoiser. What it
      leaves alone is taken from the `params` of `update`.
  """
  trainable = trainable or trainable_lib.denoiser()
  perturb = over_batches(inner, num_steps=perturb_steps, hold=hold)

  def init(key: jax.Array, data: Batch, params: Params | None) -> BilevelState:
    # A copy: the state is donated to every round, the caller's parameters are not.
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
      surrogate = run_if(due, lambda _: restart(key, state, params), surrogate)
    step = training.make_update(of_theta(train_objective, trainable, params), tx)
    return training.train_steps(
      step, stream(key, "train"), surrogate, data, train_steps, delta=state.delta
    )

  def perturbed(key: jax.Array, inner_state: PGDState, data: Batch, params: Params):
    result, info = perturb.update(stream(key, "perturb"), inner_state, data, params)
    return result, info.loss

  def update(key: jax.Array, state: BilevelState, data: Batch, params: Params | None, phase=None):
    surrogate, train_loss = run_if(
      None if phase is None else phase != PERTURB,
      lambda carry: trained(key, state._replace(surrogate=carry[0]), data, params),
      (state.surrogate, jnp.full((train_steps,), jnp.nan)),
    )
    warm = None if not warmup_rounds else state.round >= warmup_rounds
    if phase is not None:
      warm = (phase != TRAIN) if warm is None else warm & (phase != TRAIN)
    attacked = trainable.merge(surrogate.params, params)
    inner_state, loss = run_if(
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
  """What the surrogate trains, of `params` or afresh; a copy, because the state is donated."""
  return trainable.init(key, init_params(key) if params is None else params)


def of_theta(objective: Objective, trainable: Trainable, params: Params | None) -> Objective:
  """`objective` as a function of the trained part of the parameters alone."""
  return lambda theta, *rest: objective(trainable.merge(theta, params), *rest)


def run_if(condition: jax.Array | None, function: Callable[[Any], Any], carry: Any) -> Any:
  """`function(carry)`, or `carry` where the condition is false; None means always.

  A loop of at most one round and no `lax.cond`: XLA's CPU backend spreads the body of a loop over
  threads, but not the branch of a conditional (measured: 1.7 times slower on two cores).
  """
  if condition is None:
    return function(carry)
  _, carry = jax.lax.while_loop(
    lambda state: state[0],
    lambda state: (jnp.zeros_like(state[0]), function(state[1])),
    (jnp.asarray(condition), carry),
  )
  return carry


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
  """The max-min loop at half the price: one backward pass gives both gradients.

  As in "free" adversarial training (Shafahi et al., arXiv:1904.12843): every training step also
  moves the perturbations of the pictures it trains on, against the weights before the step. A round
  is `train_steps` such steps, so a picture takes train_steps / num_batches steps a round.

  Args:
    objective: minimised over weights (averaged) and maximised over delta (summed), with the same
      draws and the same distribution over timesteps.
    tx: the surrogate's optimiser.
    constraint: budget.
    ascent: makes a step of delta of the *negated* gradient; without state, e.g. `sign_descent`.
    init_params: see `bilevel`.
    train_steps: of each round.
    trainable: see `bilevel`.

  Raises:
    ValueError: `ascent` keeps a state.
  """
  if jax.tree.leaves(ascent.init(jnp.zeros(1))):
    raise ValueError("joint steps visit pictures in no fixed batches: `ascent` must keep no state")
  trainable = trainable or trainable_lib.denoiser()

  def init(key: jax.Array, data: Batch, params: Params | None) -> BilevelState:
    theta = _theta(trainable, init_params, stream(key, "surrogate"), params)

    def start(batch: Batch) -> jax.Array:
      keys = example_keys(stream(key, "start"), 0, batch.ids)
      return allowed(constraint.init(keys, to_float(batch.images)), batch, drawn=True)

    delta = jax.lax.map(start, data)
    steps = jnp.zeros(data.ids.shape[0], jnp.int32)
    inner = PGDState(delta, ascent.init(delta), steps)
    return BilevelState(inner, training.init_state(theta, tx), jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: BilevelState, data: Batch, params: Params | None, phase=None):
    del phase  # A step has no parts.
    merged = of_theta(objective, trainable, params)
    num_batches, lanes = data.ids.shape
    shuffle, draws = stream(key, "shuffle"), stream(key, "draws")

    def step(carry: tuple[TrainState, jax.Array, jax.Array], _):
      surrogate, delta, seen = carry
      rows = training.take_rows(shuffle, surrogate.step, num_batches, lanes)
      batch, delta_batch = training.take((data, delta), rows)
      images = to_float(batch.images)
      keys = example_keys(draws, surrogate.step, batch.ids)

      def total(theta: Params, delta: jax.Array):
        losses, _ = merged(theta, images + delta, batch.cond, keys)
        return jnp.sum(losses * batch.weight), losses

      gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
      (loss, losses), (gradients, ascending) = gradient(surrogate.params, delta_batch)
      surrogate, loss = training.apply_gradients(tx, surrogate, gradients, loss, batch.weight)
      moves, _ = ascent.update(along(-ascending, batch), ascent.init(delta_batch), delta_batch)
      moved = constraint.project(optax.apply_updates(delta_batch, moves), images)
      moved = allowed(moved, batch)
      delta, seen = training.put(delta, rows, moved), training.put(seen, rows, -losses)
      return (surrogate, delta, seen), loss

    # A picture that no step of this round visits reports NaN.
    carry = state.surrogate, state.inner.delta, jnp.full(data.ids.shape, jnp.nan)
    (surrogate, delta, seen), train_loss = jax.lax.scan(step, carry, None, length=train_steps)
    inner = state.inner._replace(delta=delta, step=state.inner.step + 1)
    return BilevelState(inner, surrogate, state.round + 1), Info(seen, train_loss)

  return Protection(init, update)
