"""One stage of training: an update, its data, checkpoints, metrics and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from udp_jax import loop, training
from udp_jax.checkpoint import Checkpoints
from udp_jax.metrics_writer import MetricsWriter
from udp_jax.training import Batch, TrainState


def optimiser(options: Any) -> optax.GradientTransformation:
  """Adam with a linear warm-up, a cosine decay to 0, and the gradient's norm clipped to 1."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, options.learning_rate, max(1, options.warmup_steps), max(2, options.train_steps)
  )
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def fit(
  update: Callable,
  state: TrainState,
  data: Batch,
  *,
  key: jax.Array,
  folder: Path,
  train_steps: int,
  steps_per_call: int,
  checkpoint_every: int,
  label: str,
  progress: bool = True,
) -> TrainState:
  """Trains to `train_steps`, from the newest checkpoint in `folder` if there is one.

  Args:
    update: of `training.make_update`, or one like it.
    state: at step 0; its buffers are donated.
    data: leaves (num_batches, B, ...).
    key: root of every draw; with the step count it decides all of them.
    folder: for checkpoints and metrics.jsonl.
    train_steps: optimiser steps in all.
    steps_per_call: steps of one compiled scan.
    checkpoint_every: steps.
    label: for the progress bar.
    progress: show a bar.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run`.
  """

  @partial(jax.jit, static_argnums=2, donate_argnums=0)
  def steps(state: TrainState, data: Batch, num_steps: int):
    state, losses = training.train_steps(update, key, state, data, num_steps)
    return state, jnp.mean(losses), optax.tree.norm(state.params)

  data = jax.device_put(data)
  batch = data.ids.shape[1]

  def advance(state: TrainState, position: int) -> loop.Advance:
    start = time.monotonic()
    count = min(steps_per_call, train_steps - position)
    state, loss, norm = steps(state, data, count)
    metrics = {"loss": float(loss), "params_norm": float(norm)}
    metrics["images_per_s"] = count * batch / (time.monotonic() - start)
    return loop.Advance(state, position + count, metrics)

  writer = MetricsWriter(folder / "metrics.jsonl")
  try:
    return loop.run(
      advance,
      state,
      total=train_steps,
      label=label,
      unit="step",
      checkpoints=Checkpoints(folder / "checkpoints", every=checkpoint_every, keep=1),
      writer=writer,
      must_be_finite=("loss", "params_norm"),
      shown=("loss", "images_per_s"),
      progress=progress,
    )
  finally:
    writer.close()
