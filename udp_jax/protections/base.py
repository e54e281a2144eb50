"""The type of a protection, and the two loops that all protections use.

A protection is an (init, update) pair of pure functions, like an optax transformation. Its data are
`Batch`es with leaves (num_batches, global_batch, ...): the whole data set (or shard of it) at once,
resident on the device. One `update` is one *round* over them: one step of PGD, or the train and
perturb steps of a max-min round. Every state has the field `delta`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from udp_jax.data.batches import Batch
from udp_jax.models.base import Params
from udp_jax.objectives.base import Objective
from udp_jax.ops import projections
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys
from udp_jax.protections.constraints import Constraint
from udp_jax.protections.spectrum import Variable

# Values of `phase`; None means WHOLE, known at trace time.
WHOLE, TRAIN, PERTURB = 0, 1, 2


class Info(NamedTuple):
  """Measurements of a round, not carried on. Reduce them on the host, at log steps only.

  Attributes:
    loss: (num_batches, B), the objective that delta minimises, at the round's last step; NaN in a
      round, or part of one, that does not perturb.
    train_loss: (train_steps,), the surrogate's training loss; NaN in a part that does not train,
      empty for a method without a surrogate.
  """

  loss: jax.Array
  train_loss: jax.Array


class InitFn(Protocol):
  """Makes the initial state of a protection."""

  def __call__(self, key: jax.Array, data: Batch, params: Params | None, /) -> Any:
    """Draws the first perturbations, and the surrogate if there is one.

    Args:
      key: decides every draw.
      data: pictures, leaves (num_batches, B, ...).
      params: parameters of the attacked model; may be None if the method trains a surrogate from
        scratch or uses no model.

    Returns:
      The state: a pytree with the field `delta` (num_batches, B, H, W, C).
    """


class UpdateFn(Protocol):
  """One round of a protection."""

  def __call__(
    self,
    key: jax.Array,
    state: Any,
    data: Batch,
    params: Params | None,
    /,
    phase: ArrayLike | None = None,
  ) -> tuple[Any, Info]:
    """Moves the perturbations of all pictures by one round.

    Args:
      key: the same in every round: draws depend on it and on counters in the state.
      state: from `InitFn` or the round before; it may be donated.
      data: pictures, leaves (num_batches, B, ...).
      params: parameters of the attacked model, the same as for `InitFn`.
      phase: (), the part of the round to run: WHOLE, TRAIN or PERTURB; None means WHOLE, known at
        trace time.

    Returns:
      The state after the round, with the same structure, and the round's measurements.
    """


class Rounds(NamedTuple):
  """Number of steps in a round, and which rounds differ.

  Attributes:
    train_steps: optimiser steps of the surrogate in each round.
    perturb_steps: steps of every picture in each round.
    warmup_rounds: number of first rounds that train but do not perturb.
    restart_every: number of rounds after which the surrogate is initialised again; 0 for never.
  """

  train_steps: int
  perturb_steps: int = 1
  warmup_rounds: int = 0
  restart_every: int = 0

  def divided(self, num_shards: int) -> tuple[Rounds, int]:
    """Returns rounds of one shard each; `num_shards` of them replace one round over all data.

    `train_steps` is divided by its largest divisor of at most `num_shards`; as many of the shards'
    rounds train. Warm-up and restarts are counted in rounds of shards.

    >>> Rounds(train_steps=30, warmup_rounds=1).divided(4)
    (Rounds(train_steps=10, perturb_steps=1, warmup_rounds=4, restart_every=0), 3)
    """
    train_visits = max(n for n in range(1, num_shards + 1) if self.train_steps % n == 0)
    rounds = self._replace(
      train_steps=self.train_steps // train_visits,
      warmup_rounds=self.warmup_rounds * num_shards,
      restart_every=self.restart_every * num_shards,
    )
    return rounds, train_visits


class Protection(NamedTuple):
  """An (init, update) pair.

  Attributes:
    init: (key, data, params) -> state.
    update: (key, state, data, params, phase=None) -> (state, info), one round.
    needs_params: whether the method attacks a model that must already be trained.
    needs_reference: whether the data must hold another method's pictures (`Batch.reference`).
    phases: parts that a round may be split into, in order. Calling the compiled `update` with each
      of them (traced) as `phase` equals one call with WHOLE, and lets the host time the parts.
    perturb_steps: steps that each picture takes in a round.
    drawn_once: whether `init` does all the work and rounds change nothing.
    trains: optimiser steps of the surrogate in a round that trains; 0 without a surrogate.
    for_shards: num_shards -> the result of `divided`; None if a shard's round is like any other.
    arguments: makes the arrays that `update` takes after `phase`, if this is not None, so that
      methods that differ only in them share a compiled program; without them `update` uses the
      same values as constants. A function, because `run` hashes the whole tuple, and arrays have
      no hash.
  """

  init: InitFn
  update: UpdateFn
  needs_params: bool = False
  needs_reference: bool = False
  phases: tuple[int, ...] = ()
  perturb_steps: int = 1
  drawn_once: bool = False
  trains: int = 0
  for_shards: Callable[[int], tuple[Protection, int]] | None = None
  arguments: Callable[[], Any] | None = None

  def divided(self, num_shards: int) -> tuple[Protection, int]:
    """Returns the protection for pictures that are streamed through the devices in shards.

    A round then visits every shard with one `update`. It trains for as many steps in total as
    before, and warm-up and restarts take as many rounds.

    Args:
      num_shards: number of shards.

    Returns:
      The protection whose `update` is one visit, and how many visits of a round train
      (`num_shards` for a method that does not train).
    """
    return (self, num_shards) if self.for_shards is None else self.for_shards(num_shards)


def divisible(make: Callable[[Rounds], Protection], rounds: Rounds) -> Protection:
  """Makes a protection that trains a surrogate, with its form for streaming.

  Args:
    make: returns the protection for any `Rounds`.
    rounds: the rounds for resident data.

  Returns:
    `make(rounds)` with `trains` and `divided`.

  >>> make = lambda rounds: fixed(lambda keys, images: 0.0 * images)
  >>> method = divisible(make, Rounds(train_steps=30))
  >>> visit, train_visits = method.divided(4)
  >>> method.trains, visit.trains, train_visits
  (30, 10, 3)
  """

  def for_shards(num_shards: int) -> tuple[Protection, int]:
    visit, train_visits = rounds.divided(num_shards)
    return divisible(make, visit), train_visits

  return make(rounds)._replace(trains=rounds.train_steps, for_shards=for_shards)


def taking(make: Callable[[Any], Protection], arguments: Any) -> Protection:
  """Makes a protection whose rounds take arrays as arguments, not as constants of their program.

  `init`, the number of steps and the phases must not depend on the arrays.

  Args:
    make: returns the protection for any arrays of these shapes and dtypes.
    arguments: pytree of arrays.

  Returns:
    `make(arguments)` with `Protection.arguments`, in its form for streaming too.

  >>> def towards(level):
  ...   def objective(params, images, cond, keys):
  ...     return jnp.square(images - level).mean((1, 2, 3)), {}
  ...   return over_batches(pgd(objective, constraints.linf(0.1), sign_descent(0.04)))
  >>> from udp_jax.data import batches
  >>> from udp_jax.protections import constraints
  >>> data = batches.make_batches(jnp.full((1, 2, 2, 3), 128, jnp.uint8), 1)
  >>> method, key = taking(towards, jnp.float32(1.0)), jax.random.key(0)
  >>> state = method.init(key, data, None)
  >>> for level in (None, method.arguments(), jnp.float32(0.0)):  # Its own, the same, and another.
  ...   after, _ = method.update(key, state, data, None, arguments=level)
  ...   print(round(float(after.delta.mean()), 3))
  0.04
  0.04
  -0.04
  """
  method = make(arguments)

  def update(key, state, data, params, phase=None, arguments=None):
    chosen = method if arguments is None else make(arguments)
    return chosen.update(key, state, data, params, phase)

  def for_shards(num_shards: int) -> tuple[Protection, int]:
    def visit(arguments: Any) -> Protection:
      return make(arguments).divided(num_shards)[0]

    return taking(visit, arguments), method.divided(num_shards)[1]

  return method._replace(
    update=update,
    for_shards=None if method.for_shards is None else for_shards,
    arguments=lambda: arguments,
  )


class PGDState(NamedTuple):
  """State of projected gradient descent on one batch (leaves (B, ...) and a step count)."""

  delta: jax.Array
  opt_state: optax.OptState
  step: jax.Array

  @property
  def variable(self) -> None:
    """What is optimised, where it is not delta itself."""
    return None


class BandedState(NamedTuple):
  """The same in a band, with the variable that delta is made of."""

  delta: jax.Array
  opt_state: optax.OptState
  step: jax.Array
  variable: Variable

  @classmethod
  def of(
    cls, delta: jax.Array, opt_state: Any, step: jax.Array, variable: Variable | None
  ) -> PGDState | BandedState:
    """Returns the state with a variable, or a `PGDState`, whose checkpoints know of none."""
    if variable is None:
      return PGDState(delta, opt_state, step)
    return cls(delta, opt_state, step, variable)


def pgd(
  objective: Objective,
  constraint: Constraint,
  tx: optax.GradientTransformation,
  *,
  sees_batch: bool = False,
) -> Protection:
  """Projected gradient descent of `objective` over delta, for one batch (leaves (B, ...)).

  Use `over_batches` for a data set. The losses are summed before the gradient is taken, so a
  picture's perturbation depends neither on the other pictures of its batch nor on sharding. Only
  delta is differentiated: no gradient of the weights is computed.

  Args:
    objective: the loss that delta minimises; wrap it in `negate` to maximise.
    constraint: the budget of delta.
    tx: the optimiser that turns a gradient into a step, such as `sign_descent(step_size)`.
    sees_batch: `objective` gets the whole `Batch` in place of `cond`, for access to the clean
      pictures and the reference.

  >>> from udp_jax.data import batches
  >>> from udp_jax.protections import constraints
  >>> def bright(params, images, cond, keys):
  ...   return images.mean((1, 2, 3)), {}
  >>> method = pgd(bright, constraints.linf(0.1), sign_descent(0.04))  # Darker, step by step.
  >>> data = batches.make_batches(jnp.full((2, 4, 4, 3), 128, jnp.uint8), 2)
  >>> images, _ = run(over_batches(method), jax.random.key(0), data, None, num_rounds=3)
  >>> round(float((images - data.images / 255).mean()), 3)
  -0.1
  """

  def init(key: jax.Array, batch: Batch, params: Params | None) -> PGDState | BandedState:
    del params
    delta, variable = started(constraint, example_keys(key, 0, batch.ids), batch)
    opt_state = tx.init(delta if variable is None else variable)
    return BandedState.of(delta, opt_state, jnp.zeros((), jnp.int32), variable)

  def update(
    key: jax.Array,
    state: PGDState | BandedState,
    batch: Batch,
    params: Params | None,
    phase: ArrayLike | None = None,
  ) -> tuple[PGDState | BandedState, Info]:
    del phase  # One step has no parts.
    images = to_float(batch.images)
    keys = example_keys(key, state.step, batch.ids)

    def total(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
      seen = batch if sees_batch else batch.cond
      losses, _ = objective(params, images + delta, seen, keys)
      return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.delta)
    moved = stepped(constraint, tx, state, gradients, batch)
    return moved._replace(step=state.step + 1), Info(losses, jnp.zeros((0,)))

  return Protection(init, update, needs_params=True)


def started(
  constraint: Constraint, keys: jax.Array, batch: Batch
) -> tuple[jax.Array, Variable | None]:
  """Returns the first delta, (B, H, W, C), and the variable of its band (None without one).

  >>> from udp_jax.protections import constraints
  >>> batch = Batch(jnp.full((1, 8, 8, 3), 128, jnp.uint8), jnp.arange(1), jnp.ones(1))
  >>> keys = example_keys(jax.random.key(0), 0, batch.ids)
  >>> delta, variable = started(constraints.linf(0.1, start="sign"), keys, batch)
  >>> round(float(abs(delta).min()), 3), variable
  (0.1, None)
  """
  images = to_float(batch.images)
  delta = allowed(constraint.init(keys, images), batch, drawn=True)
  if constraint.band is None:
    return delta, None
  variable = constraint.band.start(delta)
  made = constraint.project(constraint.band.made(variable), images)
  return allowed(made, batch), variable


def stepped(
  constraint: Constraint,
  tx: optax.GradientTransformation,
  state: PGDState | BandedState,
  gradients: jax.Array,
  batch: Batch,
) -> PGDState | BandedState:
  """Returns the state after one step of the optimiser, projected; its `step` is not counted.

  Args:
    constraint: the budget of delta, and its band.
    tx: the optimiser.
    state: leaves (B, ...).
    gradients: (B, H, W, C), of the loss at `state.delta`.
    batch: leaves (B, ...).

  >>> from udp_jax.protections import constraints
  >>> batch = Batch(jnp.full((1, 8, 8, 3), 128, jnp.uint8), jnp.arange(1), jnp.ones(1))
  >>> constraint, tx = constraints.linf(0.1), sign_descent(0.04)
  >>> state = PGDState(jnp.zeros((1, 8, 8, 3)), tx.init(None), jnp.zeros((), jnp.int32))
  >>> after = stepped(constraint, tx, state, jnp.ones((1, 8, 8, 3)), batch)
  >>> round(float(after.delta.mean()), 3)
  -0.04
  """
  images, band = to_float(batch.images), constraint.band
  gradients = along(gradients, batch)
  variable: Variable | None = None
  if band is None or state.variable is None:
    updates, opt_state = tx.update(gradients, state.opt_state, state.delta)
    made = optax.apply_updates(state.delta, updates)
  else:
    if batch.mask is not None:  # What is not allowed to move pulls at nothing.
      gradients = projections.masked(gradients, jnp.asarray(batch.mask))
    held = allowed(projections.box(band.made(state.variable), images), batch)
    pulled = band.pulled(gradients, state.variable, held)
    updates, opt_state = tx.update(pulled, state.opt_state, state.variable)
    variable = band.moved(state.variable, updates)
    made = band.made(variable)
  delta = allowed(constraint.project(made, images), batch)
  return BandedState.of(delta, opt_state, state.step, variable)


def allowed(delta: jax.Array, batch: Batch, *, drawn: bool = False) -> jax.Array:
  """Clips `delta` to each pixel's limit, zeroes it outside the mask, and keeps grey pictures grey.

  Args:
    delta: (B, H, W, C), within the budget.
    batch: leaves (B, ...).
    drawn: whether delta is a random draw; a grey picture then keeps one channel, not the mean.

  >>> batch = Batch(
  ...   jnp.full((1, 2, 2, 3), 128, jnp.uint8), jnp.arange(1), jnp.ones(1),
  ...   limit=jnp.full((1, 2, 2, 1), 51, jnp.uint8),
  ... )
  >>> round(float(allowed(jnp.full((1, 2, 2, 3), 0.5), batch).max()), 3)  # 51 levels of 255.
  0.2
  """
  if batch.grey is not None:
    make = projections.first_channel if drawn else projections.grey
    delta = make(delta, jnp.asarray(batch.grey))
  if batch.limit is not None:
    bound = to_float(batch.limit)
    delta = jnp.clip(delta, -bound, bound)
  return delta if batch.mask is None else projections.masked(delta, jnp.asarray(batch.mask))


def along(gradients: jax.Array, batch: Batch) -> jax.Array:
  """Returns the part of a gradient (B, H, W, C) that a step may follow.

  A grey picture moves along the mean over its channels: the signs of single channels would partly
  cancel when the step is projected.

  >>> images, grey = jnp.full((1, 2, 2, 3), 128, jnp.uint8), jnp.ones(1, bool)
  >>> batch = Batch(images, jnp.arange(1), jnp.ones(1), grey=grey)
  >>> along(jnp.zeros((1, 2, 2, 3)).at[..., 0].set(3.0), batch)[0, 0, 0].tolist()
  [1.0, 1.0, 1.0]
  """
  return gradients if batch.grey is None else projections.grey(gradients, jnp.asarray(batch.grey))


def sign_descent(step_size: float | optax.Schedule) -> optax.GradientTransformation:
  """Delta <- delta - step_size * sign(gradient): the step of I-FGSM and of L-inf PGD.

  >>> tx = sign_descent(0.5)
  >>> tx.update(jnp.array([2.0, -3.0]), tx.init(jnp.zeros(2)))[0].tolist()
  [-0.5, 0.5]
  """
  return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(step_size))


def l2_descent(step_size: float | optax.Schedule) -> optax.GradientTransformation:
  """Delta <- delta - step_size * gradient / ||gradient||_2, with one norm per picture (B, ...).

  >>> tx, gradient = l2_descent(0.5), jnp.array([[3.0, 4.0]])
  >>> move, _ = tx.update(gradient, tx.init(gradient))
  >>> round(float(move[0, 0]), 3), round(float(move[0, 1]), 3)
  (-0.3, -0.4)
  """
  direction = optax.stateless(lambda updates, _: jax.tree.map(projections.l2_normalised, updates))
  return optax.chain(direction, optax.scale_by_learning_rate(step_size))


def over_batches(
  inner: Protection, *, num_steps: int = 1, hold: Callable[[Params], Params] | None = None
) -> Protection:
  """Lifts a protection of one batch to a data set: `num_steps` updates of each batch per round.

  Args:
    inner: a protection of one batch, usually `pgd`.
    num_steps: updates of each batch in a round.
    hold: `DiffusionModel.hold`: prepares the parameters once for all steps of a round.

  >>> from udp_jax.data import batches
  >>> from udp_jax.protections import constraints
  >>> def bright(params, images, cond, keys):
  ...   return images.mean((1, 2, 3)), {}
  >>> step = pgd(bright, constraints.linf(0.1), sign_descent(0.04))
  >>> over_batches(step, num_steps=2).perturb_steps
  2
  """

  def init(key: jax.Array, data: Batch, params: Params | None) -> Any:
    return jax.lax.map(lambda batch: inner.init(key, batch, params), data)

  def update(key: jax.Array, state: Any, data: Batch, params: Params | None, phase=None):
    del phase  # There is only one kind of step.
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
  """A control drawn once: `draw(keys (B,), images (B, H, W, C)) -> delta`, like `Constraint.init`.

  >>> from udp_jax.protections import constraints
  >>> fixed(constraints.linf(0.1, start="sign").init).drawn_once
  True
  """

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

  All leaves are (num_batches, B, ...). `init` raises ValueError if the data have no reference.

  >>> fixed_from_reference(lambda keys, data, delta: -delta).needs_reference
  True
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
  """Runs all rounds of a protection in one compiled call.

  Args:
    protection: a method from its constructor.
    key: decides every draw.
    data: pictures, leaves (num_batches, B, ...).
    params: parameters of the attacked model, or None.
    num_rounds: number of rounds.

  Returns:
    Protected images, float32 (num_batches, B, H, W, C) in [0, 1], and the infos of all rounds
    (leaves (num_rounds, ...)). Use `ops.image.quantise_within` to save the images.

  >>> from udp_jax.data import batches
  >>> from udp_jax.protections import constraints
  >>> method = fixed(constraints.linf(0.1, start="sign").init)
  >>> data = batches.make_batches(jnp.full((3, 4, 4, 3), 128, jnp.uint8), 2)
  >>> images, info = run(method, jax.random.key(0), data, None, num_rounds=1)
  >>> images.shape, info.loss.shape
  ((2, 2, 4, 4, 3), (1, 2, 2))
  """
  state, infos = _run(protection, key, data, params, num_rounds=num_rounds)
  return to_float(data.images) + state.delta, infos
