"""Stages that train: a threat on pictures, or any update on batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udp_jax.data import batches
from udp_jax.data.batches import Batch
from udp_jax.models.base import Params
from udp_jax.objectives import training
from udp_jax.objectives.training import TrainState
from udp_jax.runtime import loop, sharding
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.stages import compiled_round
from udp_jax.stages.records import Run
from udp_jax.threats.base import Threat


def fit(
  update: Callable, state: TrainState, data: Batch, run: Run, *, train_steps: int
) -> TrainState:
  """Trains to `train_steps`, from the newest checkpoint if there is one.

  Args:
    update: from `training.make_update`, or one like it.
    state: state at step 0; its buffers are donated.
    data: leaves (num_batches, B, ...).
    run: its key (draws depend on it and the step count), folder, checkpoints and `steps_per_call`.
    train_steps: total number of optimiser steps.

  Raises:
    DivergedError, OutputError, Preempted: as `loop.run`.
  """

  @partial(jax.jit, static_argnums=2, donate_argnums=0)
  def steps(state: TrainState, data: Batch, num_steps: int):
    state, losses = training.train_steps(update, run.key, state, data, num_steps)
    return state, jnp.mean(losses), optax.tree.norm(state.params)

  data = jax.device_put(data)

  def some_steps(state: TrainState, num_steps: int) -> tuple[TrainState, dict[str, float]]:
    state, loss, norm = steps(state, data, num_steps)
    return state, {"loss": float(loss), "params_norm": float(norm)}

  return _drive(some_steps, state, run, train_steps=train_steps, batch=data.ids.shape[1])


def _drive(
  some_steps: Callable[[Any, int], tuple[Any, dict[str, float]]],
  state: Any,
  run: Run,
  *,
  train_steps: int,
  batch: int,
) -> Any:
  """Calls `some_steps(state, num_steps) -> (state, numbers)` until all steps are done."""

  def advance(state: Any, position: int) -> loop.Advance:
    count = min(run.steps_per_call, train_steps - position)
    start = time.monotonic()
    state, numbers = some_steps(state, count)
    numbers["images_per_s"] = count * batch / (time.monotonic() - start)
    return loop.Advance(state, position + count, numbers)

  work = loop.Work(
    run.label,
    "step",
    train_steps,
    must_be_finite=("loss", "params_norm"),
    shown=("loss", "images_per_s"),
    progress=run.progress,
    compiles=True,
  )
  return loop.run_in(run.folder, advance, state, work, every=run.checkpoint_every, keep=1)


class ClassPictures(NamedTuple):
  """Class pictures that DreamBooth trains on beside the subject's pictures.

  Attributes:
    images: (M, H, W, 3) uint8.
    cond: (M, ...), their prompts.
    weight: weight of a class picture in the loss; a picture of the subject has weight 1.
  """

  images: np.ndarray
  cond: np.ndarray
  weight: float


def training_batches(
  images: np.ndarray, cond: np.ndarray | None, global_batch_size: int, prior: ClassPictures | None
) -> Batch:
  """Batches pictures with their prompts in host memory; with a prior, half are class pictures.

  Args:
    images: (N, H, W, 3) uint8.
    cond: (N, ...), their prompts; None for models without text.
    global_batch_size: pictures in a step, over all devices.
    prior: class pictures, or None.

  Raises:
    ConfigError: as `batches.batches_with_prior`.
  """
  if prior is None:
    return batches.make_batches(images, global_batch_size, cond=cond)
  assert cond is not None  # A prior has prompts, and so has the subject.
  return batches.batches_with_prior(
    images,
    cond,
    prior.images,
    prior.cond,
    prior_weight=prior.weight,
    global_batch_size=global_batch_size,
  )


def train(threat: Threat, images: np.ndarray | Batch, params: Params | None, run: Run) -> Params:
  """Trains a threat's theta on pictures; returns its average if the threat keeps one.

  Sample with the parameters `threat.trainable.merge(theta, params)`, or with theta itself if the
  threat trains all of them. Every process gets the whole theta on a device of its own.

  Args:
    threat: the method of training.
    images: uint8 (N, H, W, 3), or batches of pictures with prompts.
    params: parameters of the model to start from; None trains from scratch.
    run: devices, draws, batch size, checkpoints and `steps_per_call`.

  Raises:
    DivergedError, OutputError, Preempted: as `loop.run`.
  """
  key, mesh = run.key, run.mesh
  if isinstance(images, np.ndarray):
    images = batches.make_batches(images, run.global_batch_size)
  data = mesh_lib.place_batches(images, mesh)
  if params is not None and threat.needs_params:
    params = mesh_lib.place(params, sharding.param_shardings(params, mesh))
  shardings = sharding.param_shardings(jax.eval_shape(threat.init, key, params), mesh)
  state = compiled_round.run_once(threat.init, out_shardings=shardings)(key, params)
  frozen = params if threat.needs_params else None
  leaves, structure = jax.tree.flatten(shardings)
  update = _update_in_place(threat, structure, tuple(leaves))

  def some_steps(state: Any, num_steps: int) -> tuple[Any, dict[str, float]]:
    state, losses = update(key, state, data, num_steps, frozen)
    return state, compiled_round.fetched(_train_metrics(losses, state.params))

  batch = data.ids.shape[1]
  state = _drive(some_steps, state, run, train_steps=threat.train_steps, batch=batch)
  return jax.device_put(mesh_lib.to_host(threat.final(state)))


@cache  # One compilation for all the models that one threat trains.
def _update_in_place(threat: Threat, structure: Any, shardings: tuple[Any, ...]) -> Callable:
  """`threat.update`, compiled so that its state keeps `shardings` from step to step."""
  where = jax.tree.unflatten(structure, shardings)
  return jax.jit(threat.update, static_argnums=3, donate_argnums=1, out_shardings=(where, None))


@jax.jit
def _train_metrics(losses: jax.Array, params: Params) -> dict[str, jax.Array]:
  return {"loss": jnp.mean(losses), "params_norm": optax.tree.norm(params)}
