"""The rounds of a protection for `loop.run`: all pictures on the devices, or streamed there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax import loop, parallel, placement, streaming, training
from udp_jax.models.base import Params
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE, Protection
from udp_jax.training import Batch

# Rounds between two that are dispatched in parts, so that the min and max steps are timed apart.
_TIMED_EVERY = 5
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Rounds(NamedTuple):
  """What one protection does to one set of pictures, compiled.

  Attributes:
    state: at round 0.
    advance: (state, round) -> loop.Advance, one round. It donates the state.
    own_delta: state -> (rows (n,), delta (n, H, W, C)) of the pictures that are this process's.
  """

  state: Any
  advance: Callable[[Any, int], loop.Advance]
  own_delta: Callable[[Any], tuple[np.ndarray, np.ndarray]]


def resident(
  protection: Protection,
  batches: Batch,
  count: int,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
) -> Rounds:
  """Rounds over pictures that stay on the devices of all processes.

  Args:
    protection: the method.
    batches: of `training.make_batches`, in host memory.
    count: pictures in them, without padding.
    key: root of every draw.
    params: of the attacked model, or None.
    mesh: devices.

  Raises:
    ConfigError: the batches do not divide over the devices.
  """
  started = time.monotonic()
  num_batches, lanes = batches.ids.shape
  data = parallel.place_batches(batches, mesh)
  if params is not None:
    params = parallel.place(params, placement.param_shardings(params, mesh))
  abstract = jax.eval_shape(protection.init, key, data, params)
  # Where the state lives is fixed, not inferred: it goes round and round the same program.
  shardings = placement.state_shardings(abstract, data, mesh)
  state = run_once(protection.init, out_shardings=shardings)(key, data, params)
  jitted = jax.jit(protection.update, donate_argnums=1, out_shardings=(shardings, None))
  update = jitted.lower(key, state, data, params, jnp.int32(WHOLE)).compile()
  compile_seconds = _settled(started)

  def advance(state: Any, position: int) -> loop.Advance:
    timed = bool(protection.phases) and position % _TIMED_EVERY == 0
    numbers: dict[str, float] = {"compile_seconds": compile_seconds} if position == 0 else {}
    for phase in protection.phases if timed else (WHOLE,):
      start = time.monotonic()
      state, info = update(key, state, data, params, jnp.int32(phase))
      measured = fetched(_metrics(info, state.delta, data.weight))
      seconds = time.monotonic() - start
      # A part that does not run reports NaN, which would hide what the other part measured.
      for name in {TRAIN: ("max_loss",), PERTURB: ("train_loss",)}.get(phase, ()):
        del measured[name]
      numbers |= measured
      if phase == TRAIN:
        numbers["min_images_per_s"] = info.train_loss.size * lanes / seconds
      elif phase == WHOLE:
        numbers["images_per_s"] = count / seconds
      elif np.isfinite(measured["max_loss"]):  # Not in a round of warming up.
        numbers["max_images_per_s"] = protection.perturb_steps * count / seconds
    return loop.Advance(state, position + 1, numbers)

  def own_delta(state: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = parallel.own_rows(num_batches, lanes, count, mesh)
    return rows, parallel.fetch_own(state.delta, count)

  return Rounds(state, advance, own_delta)


def streamed(
  protection: Protection,
  batches: Batch,
  count: int,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
  shard_batches: int,
  train_visits: int | None = None,
) -> Rounds:
  """Rounds over pictures in host memory, `shard_batches` batches on the devices at a time.

  Args:
    protection: the method, built with `streaming.visit_options`.
    batches: of `training.make_batches`, in host memory.
    count: pictures in them, without padding.
    key: root of every draw.
    params: of the attacked model, or None.
    mesh: devices of this process.
    shard_batches: at least 1.
    train_visits: of `streaming.visit_options`; None for every visit of a round.

  Raises:
    ConfigError: see `streaming.make`.
  """
  started = time.monotonic()
  if params is not None:
    params = parallel.place(params, placement.param_shardings(params, mesh))
  stream = streaming.make(
    key,
    protection,
    batches,
    params,
    mesh,
    shard_batches=shard_batches,
    train_visits=train_visits,
  )
  state = streaming.init(key, stream, params, jit=run_once)
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
    return np.arange(count), training.unbatch(streaming.delta(stream, state), count)

  return Rounds(state, advance, own_delta)


def run_once(function: Callable, **options: Any) -> Callable:
  """`jax.jit` for what runs a single time, like drawing parameters: hardly optimised.

  XLA's CPU backend takes longer to optimise the draws of a U-Net's parameters than its training
  step.
  """
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(function, compiler_options=_QUICK if on_cpu else None, **options)


def fetched(numbers: dict[str, jax.Array]) -> dict[str, float]:
  """Numbers on the host, all at once; blocks until they are there."""
  return {name: float(value) for name, value in parallel.to_host(numbers).items()}


def _settled(started: float) -> float:
  """Free what tracing left (tens of MiB), then return the seconds since `started`."""
  gc.collect()
  return time.monotonic() - started


@jax.jit
def _metrics(info: Any, delta: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
  """Numbers of one round, reduced over all devices: () each."""
  used = weight > 0
  metrics = {
    "max_loss": -jnp.sum(jnp.where(used, info.loss, 0.0)) / jnp.sum(used),
    # Also the guard of what will be saved: a delta that is not finite shows here.
    "delta_rms_255": 255 * jnp.sqrt(jnp.mean(jnp.square(delta))),
  }
  if info.train_loss.size:
    metrics["train_loss"] = jnp.mean(info.train_loss)
  return metrics
