"""What a protection is, and the two loops that all of them are made of.

A protection is an (init, update) pair of pure functions, like an optax transformation. Its data are
`Batch`es with leaves (num_batches, global_batch, ...), the whole (shard of the) data set at once,
resident on the device; one `update` is one *round* over them: one step of PGD, or the train and
perturb steps of a max-min round. `delta` is a field of every state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from udp_jax.constraints import Constraint
from udp_jax.models.base import Params
from udp_jax.objectives import Objective
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.randomness import example_keys
from udp_jax.training import Batch

# Values of `phase`; None is WHOLE, decided at trace time.
WHOLE, TRAIN, PERTURB = 0, 1, 2


class HasDelta(Protocol):
  """A state that a protection may carry."""

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C), float32 on the [0, 1] scale."""


class Info(NamedTuple):
  """What a round reports, not carried on. Reduce on the host, at log steps only.

  Attributes:
    loss: (num_batches, B), the objective that delta descends, at the round's last step; NaN in a
      round, or part of one, that does not perturb.
    train_loss: (train_steps,), the surrogate's training loss, NaN in a part that does not train;
      empty where none is trained.
  """

  loss: jax.Array
  train_loss: jax.Array


class Protection(NamedTuple):
  """An (init, update) pair.

  Attributes:
    init: (key, data, params) -> state. `params` of the model that is attacked; None is allowed
      where the method trains a surrogate of its own or uses no model.
    update: (key, state, data, params, phase=None) -> (state, info), one round. Draws depend on
      `key` and on counters in the state, so the same key is passed every round.
    needs_params: whether the method attacks a model that must be trained already.
    needs_reference: whether the data must hold another method's pictures (`Batch.reference`).
    phases: parts that a round may be split into, in order: passing each of them (traced) as `phase`
      to one compiled `update` does what one call with WHOLE does, and lets the host time the parts.
    perturb_steps: steps that every picture takes in a round.
    drawn_once: whether rounds change nothing: all is done by `init`.
  """

  init: Callable[[jax.Array, Batch, Params | None], Any]
  update: Callable[..., tuple[Any, Info]]
  needs_params: bool = False
  needs_reference: bool = False
  phases: tuple[int, ...] = ()
  perturb_steps: int = 1
  drawn_once: bool = False


class PGDState(NamedTuple):
  """State of projected gradient descent on one batch (leaves (B, ...) and a step count)."""

  delta: jax.Array
  opt_state: optax.OptState
  step: jax.Array


def pgd(
  objective: Objective,
  constraint: Constraint,
  tx: optax.GradientTransformation,
  *,
  sees_batch: bool = False,
) -> Protection:
  """Projected gradient descent of `objective` over delta, for one batch (leaves (B, ...)).

  Lift it to a data set with `over_batches`. The losses are summed before the gradient is taken, so
  a picture's perturbation depends neither on the batch around it nor on sharding, and only delta is
  differentiated: no gradient of the weights is computed.

  Args:
    objective: minimised; wrap in `negate` to maximise.
    constraint: budget.
    tx: what makes a step of a gradient, e.g. `sign_descent(step_size)`.
    sees_batch: `objective` gets the whole `Batch` in place of `cond`: the clean pictures and the
      reference too.
  """

  def init(key: jax.Array, batch: Batch, params: Params | None) -> PGDState:
    del params
    delta = constraint.init(example_keys(key, 0, batch.ids), to_float(batch.images))
    delta = allowed(delta, batch, drawn=True)
    return PGDState(delta, tx.init(delta), jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: PGDState, batch: Batch, params: Params | None, phase=None):
    del phase  # One step has no parts.
    images = to_float(batch.images)
    keys = example_keys(key, state.step, batch.ids)

    def total(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
      seen = batch if sees_batch else batch.cond
      losses, _ = objective(params, images + delta, seen, keys)
      return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.delta)
    gradients = along(gradients, batch)
    updates, opt_state = tx.update(gradients, state.opt_state, state.delta)
    delta = constraint.project(optax.apply_updates(state.delta, updates), images)
    delta = allowed(delta, batch)
    return PGDState(delta, opt_state, state.step + 1), Info(losses, jnp.zeros((0,)))

  return Protection(init, update, needs_params=True)


def allowed(delta: jax.Array, batch: Batch, *, drawn: bool = False) -> jax.Array:
  """`delta` within the batch's limit of every pixel, where its mask lets it be; grey for grey ones.

  Args:
    delta: (B, H, W, C), in the budget.
    batch: leaves (B, ...).
    drawn: it is a random draw, of which a grey picture keeps one channel and not their mean.
  """
  if batch.grey is not None:
    make = projections.first_channel if drawn else projections.grey
    delta = make(delta, jnp.asarray(batch.grey))
  if batch.limit is not None:
    bound = to_float(batch.limit)
    delta = jnp.clip(delta, -bound, bound)
  return delta if batch.mask is None else projections.masked(delta, jnp.asarray(batch.mask))


def along(gradients: jax.Array, batch: Batch) -> jax.Array:
  """The part of a gradient (B, H, W, C) that a step may follow.

  A grey picture moves along the mean over its channels: signs that are taken channel by channel
  would partly cancel when the step is projected.
  """
  return gradients if batch.grey is None else projections.grey(gradients, jnp.asarray(batch.grey))


def sign_descent(step_size: float | optax.Schedule) -> optax.GradientTransformation:
  """Delta <- delta - step_size * sign(gradient): the step of I-FGSM and of L-inf PGD."""
  return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(step_size))


def l2_descent(step_size: float | optax.Schedule) -> optax.GradientTransformation:
  """Delta <- delta - step_size * gradient / ||gradient||_2, each picture's (B, ...) by itself."""
  direction = optax.stateless(lambda updates, _: jax.tree.map(projections.l2_normalised, updates))
  return optax.chain(direction, optax.scale_by_learning_rate(step_size))


def over_batches(
  inner: Protection, *, num_steps: int = 1, hold: Callable[[Params], Params] | None = None
) -> Protection:
  """Lifts a protection of one batch to a data set: `num_steps` updates of each batch a round.

  Args:
    inner: a protection of one batch, usually `pgd`.
    num_steps: updates of each batch.
    hold: `DiffusionModel.hold`: prepares the parameters once for all of a round's steps.
  """

  def init(key: jax.Array, data: Batch, params: Params | None) -> Any:
    return jax.lax.map(lambda batch: inner.init(key, batch, params), data)

  def update(key: jax.Array, state: Any, data: Batch, params: Params | None, phase=None):
    del phase  # One kind of step only.
    held = params if hold is None or params is None else hold(params)

    def one_batch(_, state_and_batch):
      batch_state, batch = state_and_batch

      def step(carry, _):
        return inner.update(key, carry, batch, held)

      batch_state, infos = jax.lax.scan(step, batch_state, None, length=num_steps)
      return None, (batch_state, jax.tree.map(lambda leaf: leaf[-1], infos))

    _, (state, infos) = jax.lax.scan(one_batch, None, (state, data))
    return state, Info(infos.loss, jnp.zeros((0,)))

  return Protection(init, update, inner.needs_params, perturb_steps=num_steps)


class FixedState(NamedTuple):
  """State of a perturbation that is drawn once."""

  delta: jax.Array


def _stay(key: jax.Array, state: FixedState, data: Batch, params: Params | None, phase=None):
  del key, params, phase
  return state, Info(jnp.zeros(data.ids.shape), jnp.zeros((0,)))


def fixed(draw: Callable[[jax.Array, jax.Array], jax.Array]) -> Protection:
  """A control drawn once: `draw(keys (B,), images (B, H, W, C)) -> delta`, as `Constraint.init`."""

  def init(key: jax.Array, data: Batch, params: Params | None) -> FixedState:
    del params

    def one_batch(batch: Batch) -> jax.Array:
      drawn = draw(example_keys(key, 0, batch.ids), to_float(batch.images))
      return allowed(drawn, batch, drawn=True)

    return FixedState(jax.lax.map(one_batch, data))

  return Protection(init, _stay, drawn_once=True)


def fixed_from_reference(
  make: Callable[[jax.Array, Batch, jax.Array], jax.Array],
) -> Protection:
  """A control made once from another method's perturbation: `make(keys, data, reference_delta)`.

  All leaves (num_batches, B, ...). `init` raises ValueError when the data have no reference.
  """

  def init(key: jax.Array, data: Batch, params: Params | None) -> FixedState:
    del params
    if data.reference is None:
      raise ValueError(
        "this control needs `reference` pictures, protected by the method it imitates"
      )
    keys = jax.vmap(lambda ids: example_keys(key, 0, ids))(data.ids)
    made = make(keys, data, to_float(data.reference) - to_float(data.images))
    return FixedState(jax.vmap(partial(allowed, drawn=True))(made, data))

  return Protection(init, _stay, needs_reference=True, drawn_once=True)


@partial(jax.jit, static_argnums=(0,), static_argnames=("num_rounds",))
def _run(protection: Protection, key, data, params, *, num_rounds: int):
  state = protection.init(key, data, params)

  def body(state, _):
    return protection.update(key, state, data, params)

  return jax.lax.scan(body, state, None, length=num_rounds)


def run(
  protection: Protection, key: jax.Array, data: Batch, params: Params | None, *, num_rounds: int
) -> tuple[jax.Array, Info]:
  """Runs a protection to its end in one compiled call.

  Args:
    protection: from a method's constructor.
    key: decides every draw.
    data: leaves (num_batches, B, ...).
    params: of the attacked model, or None.
    num_rounds: updates.

  Returns:
    Protected images, float32 (num_batches, B, H, W, C) in [0, 1], and the infos of all rounds
    (leaves (num_rounds, ...)). To save them use `ops.image.quantise_within`.
  """
  state, infos = _run(protection, key, data, params, num_rounds=num_rounds)
  return to_float(data.images) + state.delta, infos
