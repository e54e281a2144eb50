"""The rounds of a protection for `loop.run`: pictures are resident on the devices or streamed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.data import batches as batches_lib
from udp_jax.data.batches import Batch
from udp_jax.models.base import Params
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE, Protection
from udp_jax.runtime import loop, sharding
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.stages import compiled_round, streaming
from udp_jax.stages.compiled_round import CompiledRound
from udp_jax.stages.records import Run

# Rounds from one timed round to the next. A timed round runs its min and max steps in two calls.
_TIMED_EVERY = 5


class MadeRounds(NamedTuple):
  """The compiled rounds of one protection on one set of pictures.

  Attributes:
    state: the state at round 0.
    advance: (state, round) -> loop.Advance, runs one round. It donates the state.
    own_delta: state -> (rows (n,), delta (n, H, W, C)) of this process's pictures.
  """

  state: Any
  advance: Callable[[Any, int], loop.Advance]
  own_delta: Callable[[Any], tuple[np.ndarray, np.ndarray]]


def made(
  protection: Protection, batches: Batch, count: int, params: Params | None, run: Run
) -> MadeRounds:
  """Makes the rounds of a run: streamed if `run.shard_batches` asks for it, else resident.

  Raises:
    ConfigError: as `resident` and `streamed`.
  """
  make = streamed if run.shard_batches else resident
  return make(protection, batches, count, params, run)


def resident(
  protection: Protection, batches: Batch, count: int, params: Params | None, run: Run
) -> MadeRounds:
  """Makes rounds over pictures that stay on the devices of all processes.

  Args:
    protection: the method.
    batches: from `data.batches.make_batches`, in host memory.
    count: number of pictures in `batches`, without padding.
    params: parameters of the attacked model, or None.
    run: only its mesh and key are used.

  Raises:
    ConfigError: the batches do not divide over the devices.
  """
  started = time.monotonic()
  key, mesh = run.key, run.mesh
  num_batches, lanes = batches.ids.shape
  data = mesh_lib.place_batches(batches, mesh)
  if params is not None:
    params = mesh_lib.place(params, sharding.param_shardings(params, mesh))
  compiled = CompiledRound.of(protection, key, data, params, mesh)
  state = compiled.init(key, data, params)
  update = compiled.compile(key, state, data, params)
  compile_seconds = _settled(started)

  def advance(state: Any, position: int) -> loop.Advance:
    timed = bool(protection.phases) and position % _TIMED_EVERY == 0
    numbers: dict[str, float] = {"compile_seconds": compile_seconds} if position == 0 else {}
    for phase in protection.phases if timed else (WHOLE,):
      start = time.monotonic()
      state, info = update(key, state, data, params, jnp.int32(phase))
      measured = compiled_round.fetched(_metrics(info, state.delta, data.weight))
      seconds = time.monotonic() - start
      # A part that does not run reports NaN, which would hide what the other part measured.
      for name in {TRAIN: ("max_loss",), PERTURB: ("train_loss",)}.get(phase, ()):
        del measured[name]
      numbers |= measured
      if phase == TRAIN:
        numbers["min_images_per_s"] = info.train_loss.size * lanes / seconds
      elif phase == WHOLE:
        numbers["images_per_s"] = count / seconds
      elif np.isfinite(measured["max_loss"]):  # NaN in warm-up rounds, which do not perturb.
        numbers["max_images_per_s"] = protection.perturb_steps * count / seconds
    return loop.Advance(state, position + 1, numbers)

  def own_delta(state: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = mesh_lib.own_rows(num_batches, lanes, count, mesh)
    return rows, mesh_lib.fetch_own(state.delta, count)

  return MadeRounds(state, advance, own_delta)


def streamed(
  protection: Protection, batches: Batch, count: int, params: Params | None, run: Run
) -> MadeRounds:
  """Makes rounds over pictures in host memory, `run.shard_batches` batches on devices at a time.

  Args:
    protection: the method.
    batches: from `data.batches.make_batches`, in host memory.
    count: number of pictures in `batches`, without padding.
    params: parameters of the attacked model, or None.
    run: its key, its mesh (devices of this process only) and `shard_batches` (1 or more) are used.

  Raises:
    ConfigError: as `streaming.make`.
  """
  started = time.monotonic()
  key, mesh = run.key, run.mesh
  if params is not None:
    params = mesh_lib.place(params, sharding.param_shardings(params, mesh))
  stream = streaming.make(key, protection, batches, params, mesh, shard_batches=run.shard_batches)
  state = streaming.init(key, stream, params, jit=compiled_round.run_once)
  compile_seconds = _settled(started)

  def advance(state: Any, position: int) -> loop.Advance:
    timed = bool(protection.phases) and position % _TIMED_EVERY == 0
    start = time.monotonic()
    state, report = streaming.advance(key, stream, state, params, timed=timed)
    seconds = time.monotonic() - start
    numbers = {"max_loss": -float(report.loss[batches.weight > 0].mean())}
    numbers["delta_rms_255"] = 255 * report.delta_rms
    if position == 0:
      numbers["compile_seconds"] = compile_seconds
    if report.train_loss.size:
      numbers["train_loss"] = float(report.train_loss.mean())
    if not timed:
      numbers["images_per_s"] = count / seconds
    if TRAIN in report.seconds:
      trained = report.train_loss.size * batches.ids.shape[1]
      numbers["min_images_per_s"] = trained / report.seconds[TRAIN]
    if PERTURB in report.seconds and np.isfinite(numbers["max_loss"]):
      perturbed = protection.perturb_steps * count
      numbers["max_images_per_s"] = perturbed / report.seconds[PERTURB]
    return loop.Advance(state, position + 1, numbers)

  def own_delta(state: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count), batches_lib.unbatch(streaming.delta(stream, state), count)

  return MadeRounds(state, advance, own_delta)


def _settled(started: float) -> float:
  """Free what tracing left (tens of MiB), then return the seconds since `started`."""
  gc.collect()
  return time.monotonic() - started


@jax.jit
def _metrics(info: Any, delta: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
  """Returns the metrics of one round, reduced over all devices: () each."""
  used = weight > 0
  metrics = {
    "max_loss": -jnp.sum(jnp.where(used, info.loss, 0.0)) / jnp.sum(used),
    # Also a guard for the files to be saved: it is not finite if delta is not.
    "delta_rms_255": 255 * jnp.sqrt(jnp.mean(jnp.square(delta))),
  }
  if info.train_loss.size:
    metrics["train_loss"] = jnp.mean(info.train_loss)
  return metrics
