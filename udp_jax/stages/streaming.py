"""Rounds over a data set that the devices cannot hold, with the same `Protection.update`.

The batches are divided into *shards*, which stay in host memory with the state of their pictures
(delta, the steps' state and counts). State that all pictures share (a surrogate and its optimiser,
counts of rounds) stays on the devices and passes from shard to shard. A round *visits* every shard
once, in an order drawn from the key and the round's number; a visit is one `update` on that shard.
During a visit, the state of the previous shard is fetched and the next shard is put in place, so
the devices hold at most two shards of pictures and state, for data sets of any size. The
host holds the state of all pictures, and a second copy for the shards of the running call.

  stream = streaming.make(key, protection, batches, params, mesh, shard_batches=shard_batches)
                                                     # compiles; batches stay in host memory
  state = streaming.init(key, stream, params)                    # for checkpoints: a plain pytree
  while state.visit < num_rounds * len(stream.shards):
    state, report = streaming.advance(key, stream, state, params)  # to the end of the round
  delta = streaming.delta(stream, state)                           # numpy (num_batches, B, H, W, C)

Order and result depend on the key and on `state` alone, never on timing: a run that stopped between
two calls ends like one that did not. `advance(..., max_visits=n)` returns earlier, so that a stop
request or a checkpoint need not wait for the end of a long round.

With one shard, streaming is bit-identical to a resident round. With more shards, so are
perturbations that do not depend on other pictures: those of a fixed model (AdvDM) and of the
controls. (A program for shards of a single batch is compiled without a loop, and may round
differently.)

With more shards, a surrogate trains within shards, which changes the result. A visit runs the
protection's own round, so `Protection.divided` spreads the train steps over visits: a round trains
for exactly as many steps. Each step draws its batch from the visited shard. Hence only pictures of
one shard share a batch, "every picture once an epoch" becomes "every picture of a shard equally
often", and the surrogate changes between shards while the pictures of one round are perturbed.
The number of shards thus changes what such a method computes; record it with the results.

Several devices of one process work like one. `make` refuses several processes, because each would
need host shards and checkpoints of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import Params
from udp_jax.ops.keys import stream as named_stream
from udp_jax.protections.base import PERTURB, WHOLE, Protection
from udp_jax.runtime import sharding
from udp_jax.runtime.host_shards import divide, gather, merge, on_host, pipelined, select
from udp_jax.runtime.mesh import place_batches
from udp_jax.stages.compiled_round import CompiledRound, Program, placed


class Stream(NamedTuple):
  """The parts of a run that do not change: the pictures, and the compiled round of one shard.

  Attributes:
    protection: the method.
    batches: all pictures in host memory, leaves (num_batches, B, ...).
    shards: the same batches (views, except padded shards), each with leaves (n, B, ...). A shard
      takes every `len(shards)`-th batch, so a set sorted by class makes no shards of one class.
    num_real: number of batches in each shard that are not padding.
    of_shard: pytree of bools like the protection's state, True for leaves that belong to batches.
    shardings: pytree of shardings like the protection's state, for one shard.
    mesh: devices.
    train_visits: number of visits in a round that train.
    update: `Protection.update`, compiled for one shard.
    mean_square: (n, B, H, W, C) -> (n, B), jitted.
  """

  protection: Protection
  batches: Batch
  shards: tuple[Batch, ...]
  num_real: tuple[int, ...]
  of_shard: Any
  shardings: Any
  mesh: Mesh
  train_visits: int
  update: Program
  mean_square: Callable[[jax.Array], jax.Array]


class StreamState(NamedTuple):
  """All state of a run, as a pytree of arrays that checkpoints can save.

  Attributes:
    shards: for each shard the protection's state in host memory (numpy); None for shared leaves.
    shared: the protection's state on the devices; None for leaves that belong to pictures.
    visit: (), int32, numpy: visits so far; round `visit // len(shards)` is running.
  """

  shards: tuple[Any, ...]
  shared: Any
  visit: np.ndarray


class Report(NamedTuple):
  """Measurements of one call of `advance`, on the host.

  Attributes:
    loss: (num_batches, B), as `Info.loss`; NaN where a batch was not visited or not perturbed.
    train_loss: (steps,), as `Info.train_loss`, of all visits in order.
    delta_rms: RMS of delta on the [0, 1] scale over the visited pictures; NaN shows a delta that
      is not finite.
    seconds: seconds of each phase, only when `timed`.
  """

  loss: np.ndarray
  train_loss: np.ndarray
  delta_rms: float
  seconds: dict[int, float]


def count_shards(num_batches: int, shard_batches: int) -> int:
  """Returns how many shards of at most `shard_batches` batches are needed.

  Raises:
    ConfigError: `shard_batches` is below 1.
  """
  if shard_batches < 1:
    raise ConfigError(f"performance.shard_batches is {shard_batches}; streaming needs at least 1")
  return -(-num_batches // shard_batches)


def make(
  key: jax.Array,
  protection: Protection,
  batches: Batch,
  params: Params | None,
  mesh: Mesh,
  *,
  shard_batches: int,
) -> Stream:
  """Divides the data and compiles the round of one shard.

  Batches are spread evenly over `count_shards` shards, so a shard has at most one padding batch: a
  repeat of its own first batch with weight 0, whose results are dropped. (Like the padding of the
  last batch, it takes up places in the surrogate's training batches, at weight 0.)

  Args:
    key: root of every draw, of the same kind as for `init` and `advance`.
    protection: the method, as for resident data; visits run its `divided` form.
    batches: numpy leaves (num_batches, B, ...), from `data.batches.make_batches`.
    params: parameters of the attacked model, on the mesh, or None.
    mesh: devices of this process.
    shard_batches: largest number of batches in a shard. The devices hold two shards.

  Raises:
    ConfigError: `shard_batches` is below 1, B does not divide over the devices, the mesh spans
      several processes, or the method's round cannot be divided into so many visits.
  """
  num_batches = len(batches.ids)
  num_shards = count_shards(num_batches, shard_batches)
  protection, train_visits = protection.divided(num_shards)
  if mesh.is_multi_process:
    raise ConfigError(
      "performance.shard_batches streams within one process; with several, raise the number of "
      "devices until the data fit and set it to 0"
    )
  place_batches(batches.ids[:0], mesh)  # Moves nothing; it only checks B.
  if train_visits != num_shards and PERTURB not in protection.phases:
    raise ConfigError(
      f"a round of this method cannot be divided into {num_shards} visits of which {train_visits} "
      "train; choose train_steps as a multiple of the number of shards"
    )
  size = -(-num_batches // num_shards)
  num_real = tuple(len(range(i, num_batches, num_shards)) for i in range(num_shards))
  shards = tuple(
    shard._replace(weight=shard.weight * (np.arange(size) < real)[:, None].astype(np.float32))
    if real < size
    else shard
    for shard, real in zip(divide(batches, num_shards), num_real)
  )

  # A leaf that grows with the number of batches belongs to them; one shape may be a coincidence.
  abstract = [
    jax.tree.map(lambda leaf, n=n: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), batches)
    for n in (size, size + 1)
  ]
  longer = jax.eval_shape(protection.init, key, abstract[1], params)
  compiled = CompiledRound.of(protection, key, abstract[0], params, mesh)
  of_shard = jax.tree.map(lambda a, b: a.shape != b.shape, compiled.abstract, longer)
  data = placed(abstract[0], sharding.batch_shardings(abstract[0], mesh))
  update = compiled.compile(key, compiled.placed, data, params)
  return Stream(
    protection,
    batches,
    shards,
    num_real,
    of_shard,
    compiled.shardings,
    mesh,
    train_visits,
    update,
    jax.jit(lambda delta: jnp.mean(jnp.square(delta), axis=(-3, -2, -1))),
  )


def init(
  key: jax.Array, stream: Stream, params: Params | None, *, jit: Callable = jax.jit
) -> StreamState:
  """Returns the state at visit 0.

  A control that imitates another method may pair pictures over the whole data set, and needs no
  model. Its state is made for all pictures at once, in host memory, by JAX's CPU backend.

  Args:
    key: root of every draw.
    stream: the divided data and the compiled round, from `make`.
    params: parameters of the attacked model, on the mesh, or None.
    jit: compiles programs that run a single time.

  Raises:
    ConfigError: the protection is such a control, and the process has no JAX CPU backend.
  """
  protection, of_shard = stream.protection, stream.of_shard
  at_start = np.zeros((), np.int32)
  if protection.needs_reference:
    state = on_host(jit(protection.init), key, stream.batches)
    shards = divide(select(state, of_shard), len(stream.shards))
    # The control draws once for all pictures at once, so it has no other shared state.
    return StreamState(shards, select(state, of_shard, wanted=False), at_start)

  def of_pictures(key: jax.Array, data: Batch, params: Params | None) -> Any:
    return select(protection.init(key, data, params), of_shard)

  def of_all(key: jax.Array, data: Batch, params: Params | None) -> Any:
    return select(protection.init(key, data, params), of_shard, wanted=False)

  def put(shard: Batch) -> Batch:
    return place_batches(shard, stream.mesh)

  draw = jit(of_pictures)  # Apart from `of_all`: a surrogate is drawn once, not for every shard.
  _, drawn = pipelined(
    stream.shards, put, lambda carry, data: (carry, draw(key, data, params)), None
  )
  shared = jit(of_all)(key, put(stream.shards[0]), params)
  shared = jax.device_put(shared, select(stream.shardings, of_shard, wanted=False))
  return StreamState(tuple(drawn), shared, at_start)


def advance(
  key: jax.Array,
  stream: Stream,
  state: StreamState,
  params: Params | None,
  *,
  max_visits: int | None = None,
  timed: bool = False,
) -> tuple[StreamState, Report]:
  """Visits shards to the end of the running round, or `max_visits` of them.

  Args:
    key: root of every draw, the same in every call, as for `Protection.update`.
    stream: the divided data and the compiled round, from `make`.
    state: `state.shared` is donated; the host arrays are neither changed nor copied, and the
      arrays of shards that are not visited are passed on.
    params: parameters of the attacked model, on the mesh, or None.
    max_visits: largest number of visits, 1 or more; by default all that the round has left.
    timed: wait for every part of every visit to time it (less overlap, same result).

  Returns:
    The new state and the measurements.
  """
  num_shards, done = len(stream.shards), int(state.visit)
  left = num_shards - done % num_shards
  slots = np.arange(done % num_shards, done % num_shards + min(left, max_visits or left))
  order = _order(key, done // num_shards, num_shards)
  visits = [(int(order[slot]), _phases(stream, int(slot), timed)) for slot in slots]
  host_shards = list(state.shards)
  seconds: dict[int, float] = {}

  def put(visit: tuple[int, Sequence[int]]) -> tuple:
    index, phases = visit
    pictures = jax.device_put(host_shards[index], select(stream.shardings, stream.of_shard))
    return phases, place_batches(stream.shards[index], stream.mesh), pictures

  def run(shared: Any, placed: tuple) -> tuple[Any, tuple]:
    phases, data, pictures = placed
    current, infos = merge(pictures, shared), []
    for phase in phases:
      start = time.monotonic()
      current, info = stream.update(key, current, data, params, jnp.int32(phase))
      infos.append(info)
      if timed:
        jax.block_until_ready(current)
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - start
    # A part that does not run reports NaN: the first part trains, the last one perturbs.
    measured = infos[-1].loss, infos[0].train_loss, stream.mean_square(current.delta)
    shared = select(current, stream.of_shard, wanted=False)
    return shared, (select(current, stream.of_shard), measured)

  shared, results = pipelined(visits, put, run, state.shared)
  for (index, _), (pictures, _) in zip(visits, results):
    host_shards[index] = pictures
  visit = np.asarray(done + len(visits), np.int32)
  return StreamState(tuple(host_shards), shared, visit), _report(stream, visits, results, seconds)


def delta(stream: Stream, state: StreamState) -> np.ndarray:
  """Perturbations of all pictures in host memory, (num_batches, B, H, W, C), without padding."""
  return gather([shard.delta for shard in state.shards], len(stream.batches.ids))


def _report(stream: Stream, visits: list, results: list, seconds: dict[int, float]) -> Report:
  """Collects the results of the visits in the order of the batches."""
  losses = [np.full_like(shard.weight, np.nan) for shard in stream.shards]
  train_losses, squares = [np.zeros((0,), np.float32)], []
  for (index, phases), (_, (shard_loss, train_loss, square)) in zip(visits, results):
    losses[index] = shard_loss
    if phases[0] != PERTURB:
      train_losses.append(train_loss)
    squares.append(square[stream.shards[index].weight > 0])
  delta_rms = float(np.sqrt(np.mean(np.concatenate(squares), dtype=np.float64)))
  loss = gather(losses, len(stream.batches.ids))
  return Report(loss, np.concatenate(train_losses), delta_rms, seconds)


def _order(key: jax.Array, round_number: int, num_shards: int) -> np.ndarray:
  """Draws the order of the shards in a round."""
  round_key = jax.random.fold_in(named_stream(key, "shards"), round_number)
  return np.asarray(jax.random.permutation(round_key, num_shards))


def _phases(stream: Stream, slot: int, timed: bool) -> tuple[int, ...]:
  """Returns the phases of the visit at place `slot` of a round."""
  num_shards, trains = len(stream.shards), stream.train_visits
  if slot not in {i * num_shards // trains for i in range(trains)}:
    return (PERTURB,)
  return stream.protection.phases if timed and stream.protection.phases else (WHOLE,)
