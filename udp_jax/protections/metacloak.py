"""MetaCloak: one perturbation against snapshots of a fine-tuning, in expectation over transforms.

After metacloak.py of liuyixin-louis/MetaCloak. A surrogate is
fine-tuned on the clean pictures, and kept after every `interval` steps: the pool. With each
snapshot theta in turn, `interval / advance` times, delta takes perturb steps against theta and
theta takes `advance` steps on the protected pictures:

  maximise E_{theta of the pool, transforms T, t, noise} denoising loss of T(x + delta)

Published: radius 11/255, sign steps of 1.1/255 from the clean picture; 1000 steps with a snapshot
every 200, the untrained model among them; visits of 100 times 6 perturb and 2 train steps, four
times over the pool (14,400 perturb steps); AdamW at 5e-7, U-Net and text encoder, 200 class
pictures of weight 1; T is a Gaussian blur of 7 taps and a mirror image, Stable Diffusion 2.1 base.

Here a round is one of those 100, and so is a round of the pool's training, whose `train_steps` are
the same: `warmup_rounds` train the pool and perturb nothing, `restart_every` rounds lie between
snapshots and are the length of a visit. Published, then: 500 and 100, and 2,900 rounds.

Differences: resizing and cropping are left out (they do nothing to pictures of the model's size),
so are rotations and the inner adversary, which the published script turns off, and the target
shift, an option there. The fine-tuning keeps one optimiser through the warm-up; every later
training has a fresh one, as theirs. Other differences: `surrogates`. The pool is held on the
devices: train a part ("lora") of large models.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives.training import TrainState
from udp_jax.ops.control import run_if
from udp_jax.ops.keys import stream
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, PGDState, Protection, Rounds, divisible
from udp_jax.protections.options import Adaptive, Game, Prior, Spectrum, Surrogate
from udp_jax.protections.surrogates import Learner

# Fields of the option groups that this method uses.
GAME = (*surrogates.GAME, "warmup_rounds")
SURROGATE = (*surrogates.SURROGATE, "restart_every")


class MetaCloakState(NamedTuple):
  """The perturbations, the surrogate, its snapshots (num_snapshots, ...), and class pictures."""

  inner: PGDState
  surrogate: TrainState
  pool: Any
  round: jax.Array
  class_images: jax.Array | None

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def metacloak(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  game: Annotated[Game, GAME] = Game(
    train_steps=2, perturb_steps=6, learning_rate=5e-7, warmup_rounds=4
  ),
  surrogate: Annotated[Surrogate, SURROGATE] = Surrogate(restart_every=2),
  prior: Prior = Prior(),
  sampling: Annotated[Sampling, surrogates.SAMPLING] = Sampling(),
  adaptive: Adaptive = Adaptive(transforms="blur_and_flip"),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Trains the pool in the first rounds, then perturbs against snapshots that train on.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 11 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 1.1 / 255).
    game: steps in a round, the start of delta, the surrogate's AdamW, and the rounds that train the
      pool (published: 500; the default is for short runs). `num_rounds` must be larger.
    surrogate: the part of the model that is trained (published: "denoiser_and_text"), and the
      rounds between snapshots, which are also the length of a visit (published: 100).
    prior: the class that the surrogate must not forget (published: weight 1).
    sampling: how the model draws the class pictures.
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: an option cannot be used.

  >>> from udp_jax.models import toy
  >>> method = metacloak(toy.on_latents(), radius=11 / 255, step_size=1.1 / 255)
  >>> params = toy.on_latents().init(jax.random.key(0))
  >>> data = Batch(jnp.zeros((1, 2, 8, 8, 3), jnp.uint8), jnp.arange(2)[None], jnp.ones((1, 2)))
  >>> jax.eval_shape(method.init, jax.random.key(1), data, params).pool["mean"].shape
  (3, 4, 4, 3)
  """
  checked = dataclasses.replace(surrogate, restart_every=0)
  surrogates.check("metacloak", game, checked, sampling, taken=GAME)
  if not 1 <= surrogate.restart_every <= game.warmup_rounds:
    raise ConfigError(
      f"metacloak: restart_every is {surrogate.restart_every}, warmup_rounds "
      f"{game.warmup_rounds}: a snapshot needs at least one round, and the pool one snapshot"
    )
  perturb = surrogates.climbing(model, radius, step_size, game, adaptive, spectrum=spectrum)
  preserved = surrogates.preserved(model, prior, sampling)

  def made(rounds: Rounds) -> Protection:
    training = dataclasses.replace(game, train_steps=rounds.train_steps)
    learner = surrogates.fine_tuned(model, training, surrogate, preserved)
    return _over_pool(learner, perturb, rounds)

  rounds = Rounds(game.train_steps, game.perturb_steps, game.warmup_rounds, surrogate.restart_every)
  return divisible(made, rounds)


def _over_pool(learner: Learner, perturb: Protection, rounds: Rounds) -> Protection:
  """The first rounds fill the pool, the later ones visit its snapshots in turn."""
  every, warmup = rounds.restart_every, rounds.warmup_rounds
  count = warmup // every + 1

  def init(key: jax.Array, data: Batch, params: Params) -> MetaCloakState:
    first = learner.init(stream(key, "surrogate"), params)
    deltas = perturb.init(stream(key, "start"), data, params)
    # The first snapshot is the model itself; the others are filled in by the warm-up.
    pool = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), first.params)
    class_images = learner.class_images(key, data, params)
    return MetaCloakState(deltas, first, pool, jnp.zeros((), jnp.int32), class_images)

  def update(key: jax.Array, state: MetaCloakState, data: Batch, params: Params, phase=None):
    del phase  # Rounds have no parts: snapshots change between them.
    warm = state.round >= warmup
    since = jnp.maximum(state.round - warmup, 0)
    theta = _chosen(
      warm & (since % every == 0),
      jax.tree.map(lambda leaf: leaf[since // every % count], state.pool),
      state.surrogate.params,
    )
    target = surrogates.attacked(learner, theta, params)

    def perturbed(carry):
      deltas, info = perturb.update(stream(key, "perturb"), carry[0], data, target)
      return deltas, info.loss

    deltas, loss = run_if(warm, perturbed, (state.inner, jnp.full(data.ids.shape, jnp.nan)))
    opt_state = _chosen(warm, learner.tx.init(theta), state.surrogate.opt_state)
    seen = jnp.where(warm, deltas.delta, 0.0)  # The pool's training sees clean pictures.
    trained, train_loss = learner.steps(
      stream(key, "train"),
      TrainState(state.surrogate.step, theta, None, opt_state),
      data,
      seen,
      params,
      state.class_images,
    )
    done = state.round + 1
    place = jnp.minimum(done // every, count - 1)
    due = ~warm & (done % every == 0)
    pool = jax.tree.map(
      lambda kept, new: kept.at[place].set(jnp.where(due, new, kept[place])),
      state.pool,
      trained.params,
    )
    after = MetaCloakState(deltas, trained, pool, done, state.class_images)
    return after, Info(loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb.perturb_steps)


def _chosen(condition: jax.Array, first: Any, second: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
