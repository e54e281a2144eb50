"""Rounds over a data set that the devices cannot hold, with the same `Protection.update`.

The batches are divided into *shards* that stay in host memory with the state of their pictures
(delta, the steps' state and counts). What all pictures share (a surrogate and its optimiser, counts
of rounds) stays on the devices and is handed from shard to shard. A round *visits* every shard
once, in an order drawn from the key and the round's number; a visit is one `update` on that shard.
While it runs, the shard before it is fetched and the next one is put in place, so the devices hold
at most two shards of pictures and state, whatever the size of the data set. The host holds the
state of all pictures, twice for the shards of the running call.

  shards = streaming.count_shards(num_batches, shard_batches)
  options, train_visits = streaming.visit_options(constructor, options, shards)
  protection = constructor(model, **options)
  stream = streaming.make(key, protection, batches, params, mesh, shard_batches=shard_batches,
                          train_visits=train_visits)             # compiles; batches in host memory
  state = streaming.init(key, stream, params)                    # for checkpoints: a plain pytree
  while state.visit < num_rounds * len(stream.shards):
    state, report = streaming.advance(key, stream, state, params)  # to the end of the round
  delta = streaming.delta(stream, state)                           # numpy (num_batches, B, H, W, C)

Order and result depend on the key and on `state` alone, never on timing: a run that stopped between
any two calls ends like one that did not. `advance(..., max_visits=n)` returns earlier, so that a
stop request or a checkpoint need not wait for the end of a long round.

What equals the resident round: everything, bit for bit, when one shard holds all batches. With more
shards, perturbations that do not depend on other pictures do: a fixed model's (AdvDM), and the
controls'. (A program for shards of a single batch is compiled without a loop, and may round
differently from one with.)

What differs: a surrogate then trains within shards. The protection's own round is a visit, so a
protection made for resident data would train `train_steps` steps in each of them; `visit_options`
divides them such that a round trains exactly as many. A step's batch is drawn from the shard that
is visited: pictures of one shard meet, "every picture once an epoch" becomes "every picture of a
shard equally often", and the pictures of a round are perturbed while the surrogate moves on between
shards. Hence the number of shards changes what such a method computes; record it with the results.

Several devices of one process work like one. Several processes do not work here: each would need
host shards and checkpoints of its own; `make` refuses them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax import placement
from udp_jax.errors import ConfigError
from udp_jax.host_shards import divide, gather, merge, on_host, pipelined, select
from udp_jax.models.base import Params
from udp_jax.parallel import place_batches
from udp_jax.protections.base import PERTURB, WHOLE, Protection
from udp_jax.randomness import stream as named_stream
from udp_jax.training import Batch


class Stream(NamedTuple):
  """What does not change during a run: the pictures, and the compiled round of one shard.

  Attributes:
    protection: the method.
    batches: all pictures in host memory, leaves (num_batches, B, ...).
    shards: the same (views, but for padded ones), each with leaves (n, B, ...): every
      `len(shards)`-th batch, so that a set sorted by class does not make shards of one class.
    num_real: batches of each shard that are not padding.
    of_shard: pytree of bools like the protection's state, True for what belongs to batches.
    shardings: pytree like the protection's state, of one shard.
    mesh: devices.
    train_visits: visits of a round that train.
    update: the protection's, compiled for one shard.
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
  update: Callable[..., Any]
  mean_square: Callable[[jax.Array], jax.Array]


class StreamState(NamedTuple):
  """All that a run carries on, as a pytree of arrays; checkpoints keep it like any other.

  Attributes:
    shards: for each shard the protection's state in host memory (numpy), None for what is shared.
    shared: the protection's state on the devices, None for what belongs to pictures.
    visit: (), int32, numpy: visits since the beginning; round `visit // len(shards)` is running.
  """

  shards: tuple[Any, ...]
  shared: Any
  visit: np.ndarray


class Report(NamedTuple):
  """What a call of `advance` measured, on the host.

  Attributes:
    loss: (num_batches, B), as `Info.loss`; NaN where a batch was not visited or not perturbed.
    train_loss: (steps,), as `Info.train_loss`, of all visits in order.
    delta_rms: on the [0, 1] scale, over the pictures that were visited; NaN shows a delta that is
      not finite.
    seconds: by phase, only when `timed`.
  """

  loss: np.ndarray
  train_loss: np.ndarray
  delta_rms: float
  seconds: dict[int, float]


def count_shards(num_batches: int, shard_batches: int) -> int:
  """How many shards of at most `shard_batches` batches are needed.

  Raises:
    ConfigError: `shard_batches` is below 1.
  """
  if shard_batches < 1:
    raise ConfigError(f"performance.shard_batches is {shard_batches}; streaming needs at least 1")
  return -(-num_batches // shard_batches)


def visit_options(
  constructor: Callable[..., Protection], options: Mapping[str, Any], num_shards: int
) -> tuple[dict[str, Any], int]:
  """Options of a method for visits instead of rounds, so that a round means what it meant.

  `train_steps` is divided by the largest of its divisors that is at most `num_shards`: so many
  visits of a round train, evenly spread and the first among them, and a round trains `train_steps`
  steps in all. `warmup_rounds` and `restart_every` are multiplied by the number of shards.

  Args:
    constructor: of the method; its defaults count for options that are not given.
    options: of the method, for resident data.
    num_shards: of `count_shards`.

  Returns:
    The options to build the protection with, and `train_visits` for `make` (`num_shards` for a
    method that does not train).
  """
  defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(constructor).parameters.items()
    if name in ("train_steps", "warmup_rounds", "restart_every")
  }
  result, train_visits = dict(options), num_shards
  for name, default in defaults.items():
    total = options.get(name, default)
    if name == "train_steps":
      train_visits = max(n for n in range(1, num_shards + 1) if total % n == 0)
      result[name] = total // train_visits
    else:
      result[name] = total * num_shards
  return result, train_visits


def make(
  key: jax.Array,
  protection: Protection,
  batches: Batch,
  params: Params | None,
  mesh: Mesh,
  *,
  shard_batches: int,
  train_visits: int | None = None,
) -> Stream:
  """Divides the data and compiles the round of one shard.

  Batches are spread evenly over `count_shards` shards, so that a shard has at most one batch of
  padding: a repeat of its own first batch with weight 0. What is computed for it is dropped. (Like
  the padding of the last batch, it takes up places in the surrogate's training batches, at weight
  0.)

  Args:
    key: root of every draw, of the same kind as `init` and `advance` will get.
    protection: the method, with options from `visit_options`.
    batches: of `training.make_batches`: numpy leaves (num_batches, B, ...).
    params: of the attacked model, on the mesh, or None.
    mesh: devices of this process.
    shard_batches: the most batches of a shard. The devices hold two shards.
    train_visits: visits of a round that train; default all.

  Raises:
    ConfigError: `shard_batches` is below 1, B does not divide over the devices, the mesh spans
      several processes, or the method's round cannot be divided as `train_visits` asks.
  """
  num_batches = len(batches.ids)
  num_shards = count_shards(num_batches, shard_batches)
  train_visits = num_shards if train_visits is None else train_visits
  if mesh.is_multi_process:
    raise ConfigError(
      "performance.shard_batches streams within one process; with several, raise the number of "
      "devices until the data fit and set it to 0"
    )
  place_batches(batches.ids[:0], mesh)  # Moves nothing, but checks B.
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

  # What grows with the number of batches belongs to them; a shape alone could be a coincidence.
  abstract = [
    jax.tree.map(lambda leaf, n=n: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), batches)
    for n in (size, size + 1)
  ]
  states = [jax.eval_shape(protection.init, key, data, params) for data in abstract]
  of_shard = jax.tree.map(lambda one, other: one.shape != other.shape, *states)
  shardings = placement.state_shardings(states[0], abstract[0], mesh)
  data_shardings = placement.batch_shardings(abstract[0], mesh)
  # Where the state lives is fixed, not inferred: it goes round and round the same program.
  update = jax.jit(protection.update, donate_argnums=1, out_shardings=(shardings, None))
  compiled = update.lower(
    key, _placed(states[0], shardings), _placed(abstract[0], data_shardings), params, jnp.int32(0)
  ).compile()
  return Stream(
    protection,
    batches,
    shards,
    num_real,
    of_shard,
    shardings,
    mesh,
    train_visits,
    compiled,
    jax.jit(lambda delta: jnp.mean(jnp.square(delta), axis=(-3, -2, -1))),
  )


def init(
  key: jax.Array, stream: Stream, params: Params | None, *, jit: Callable = jax.jit
) -> StreamState:
  """The state at visit 0.

  A control that imitates another method may pair pictures over the whole data set, and needs no
  model: it is made for all pictures at once, in host memory, by JAX's CPU backend.

  Args:
    key: root of every draw.
    stream: of `make`.
    params: as in `make`.
    jit: compiles what runs a single time.

  Raises:
    ConfigError: such a control, in a process without JAX's CPU backend.
  """
  protection, of_shard = stream.protection, stream.of_shard
  at_start = np.zeros((), np.int32)
  if protection.needs_reference:
    state = on_host(jit(protection.init), key, stream.batches)
    shards = divide(select(state, of_shard), len(stream.shards))
    # Drawn once and for all pictures at once, it has nothing else that would be shared.
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
    key: the same every time, as for `Protection.update`.
    stream: of `make`.
    state: `state.shared` is donated; the host arrays are neither changed nor copied, and those of
      shards that are not visited are passed on.
    params: as in `make`.
    max_visits: how many at most, 1 or more; default all that are left of the round.
    timed: wait for every part of every visit to time it (less is overlapped; same result).

  Returns:
    The new state and what was measured.
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
  """Puts together what the visits reported, in the order of the batches."""
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
  """The shards in the order of a round."""
  round_key = jax.random.fold_in(named_stream(key, "shards"), round_number)
  return np.asarray(jax.random.permutation(round_key, num_shards))


def _phases(stream: Stream, slot: int, timed: bool) -> tuple[int, ...]:
  """Parts of the visit at place `slot` of a round."""
  num_shards, trains = len(stream.shards), stream.train_visits
  if slot not in {i * num_shards // trains for i in range(trains)}:
    return (PERTURB,)
  return stream.protection.phases if timed and stream.protection.phases else (WHOLE,)


def _placed(tree: Any, shardings: Any) -> Any:
  """Abstract leaves with shardings."""
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings
  )
