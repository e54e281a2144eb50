"""The stages of a run: each reads folders and writes folders, and goes on where it was killed.

  protect_stage   clean pictures            -> folder of protected 8-bit files
  train_stage     folder of pictures        -> model folder (diffusers layout)
  sample_stage    model                     -> folder of generated pictures
A folder whose manifest is there is done and is not made again. In a run of several processes all of
them call a stage, and each works on, fetches and writes pictures of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from udp_jax import constraints, loop, parallel, placement, processes, rounds, training
from udp_jax.checkpoint import Checkpoints
from udp_jax.data import images, manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.metrics_writer import MetricsWriter
from udp_jax.models.base import Params
from udp_jax.ops import visibility
from udp_jax.ops.image import quantise
from udp_jax.protections.base import Protection
from udp_jax.threats.base import Threat
from udp_jax.training import Batch

_log = logging.getLogger(__name__)


def protect_stage(
  protection: Protection,
  clean: ImageSet,
  folder: Path,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
  radius_255: float,
  spare_flat: float = 0.0,
  num_rounds: int,
  global_batch_size: int,
  scratch_folder: Path,
  checkpoint_every: int,
  label: str,
  record: Mapping[str, Any],
  reference: np.ndarray | None = None,
  cond: np.ndarray | None = None,
  shard_batches: int = 0,
  train_visits: int | None = None,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
  sources: Mapping[str, Mapping[str, Any]] | None = None,
  progress: bool = True,
) -> np.ndarray:
  """Protects a set of pictures and writes them, or reads them when that was done before.

  Args:
    protection: the method.
    clean: the 8-bit reference.
    folder: for the protected files and their manifest.
    key: root of every draw.
    params: of the attacked model, if the method needs a trained one.
    mesh: devices.
    radius_255: budget in 8-bit levels, kept by every saved file.
    spare_flat: strength of `ops.visibility.spared_limit`, kept by every pixel; 0 is off.
    num_rounds: updates.
    global_batch_size: pictures in a batch, over all devices.
    scratch_folder: for checkpoints and metrics.jsonl.
    checkpoint_every: rounds.
    label: for the progress bar.
    record: what the manifest says of the method.
    reference: pictures of another method, for the controls that imitate it.
    cond: (N, ...), what a conditioned model is told of each picture; None for other models.
    shard_batches: batches that the devices hold at a time, see `udp_jax.streaming`; 0 for all.
    train_visits: of `streaming.visit_options`, with which `protection` was built then.
    overwrite: replace a finished folder of ours.
    copies: as in `manifest.write_folder`.
    sources: as in `manifest.write_folder`.
    progress: show a bar.

  Returns:
    uint8 (N, H, W, 3) as read back from the files.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run` and `data.manifest`.
  """
  if _is_done(folder, overwrite, copies):
    return manifest.read_folder(folder)[0].images
  limit, grey = None, _grey(clean)
  if spare_flat:
    each = (visibility.spared_limit(c, radius_255, strength=spare_flat) for c in clean.images)
    limit = np.stack(list(each))
  extra = {"reference": reference, "cond": cond, "limit": limit, "grey": grey}
  rows, delta = run_rounds(
    protection,
    training.make_batches(clean.images, global_batch_size, **extra),
    len(clean.images),
    key=key,
    params=params,
    mesh=mesh,
    num_rounds=num_rounds,
    scratch_folder=scratch_folder,
    checkpoint_every=checkpoint_every,
    label=label,
    shard_batches=shard_batches,
    train_visits=train_visits,
    progress=progress,
  )
  if grey is not None:
    # Equal already, but for the rounding of sums that a compiler orders as it likes.
    mean = delta.mean(axis=-1, keepdims=True)
    delta = np.where(grey[rows].reshape(-1, 1, 1, 1) > 0, mean, delta)
  bound = radius_255 if limit is None else limit[rows]
  protected = constraints.saved(clean.images[rows], delta, bound)
  manifest.write_folder(
    folder,
    protected,
    clean.names,
    rows=rows,
    clean=clean.images,
    limit=limit,
    alphas=clean.alphas,
    metadata=clean.metadata,
    beside=clean.beside,
    record={**record, "radius_255": radius_255, "origin": clean.origin},
    sources=sources,
    overwrite=overwrite,
    copies=copies,
  )
  return manifest.read_folder(folder)[0].images


def _grey(clean: ImageSet) -> np.ndarray | None:
  """(N,) uint8, 1 for grey pictures that come from files; None where there is none.

  Pictures of data sets without files keep the layout of their set.
  """
  if clean.metadata is None:
    return None
  grey = images.is_grey(clean.images).astype(np.uint8)
  return grey if grey.any() else None


def run_rounds(
  protection: Protection,
  batches: training.Batch,
  count: int,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
  num_rounds: int,
  scratch_folder: Path,
  checkpoint_every: int,
  label: str,
  shard_batches: int = 0,
  train_visits: int | None = None,
  progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
  """All rounds of a protection, from the newest checkpoint if there is one.

  Args:
    protection: the method.
    batches: leaves (num_batches, B, ...), in host memory.
    count: pictures in them, without padding; the others are as in `protect_stage`.

  Returns:
    rows (n,), the numbers of this process's pictures, and their delta (n, H, W, C) float32 on the
    [0, 1] scale.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run`.
  """
  _log.info("%s: compiling for %d pictures", label, count)
  make = rounds.resident
  if shard_batches:
    make = partial(rounds.streamed, shard_batches=shard_batches, train_visits=train_visits)
  made = make(protection, batches, count, key=key, params=params, mesh=mesh)
  shown = ("train_loss", "max_loss", "min_images_per_s", "max_images_per_s")
  writer = _writer(scratch_folder)
  state = loop.run(
    made.advance,
    made.state,
    total=num_rounds,
    label=label,
    unit="round",
    checkpoints=Checkpoints(scratch_folder / "checkpoints", every=checkpoint_every),
    writer=writer,
    must_be_finite=("train_loss", "delta_rms_255"),
    shown=shown,
    progress=progress and processes.is_main(),
  )
  if writer is not None:
    writer.close()
  return made.own_delta(state)


def _is_done(folder: Path, overwrite: bool, copies: Collection[str] | None = None) -> bool:
  """Whether a folder is finished, by the word of process 0; if it is not, it can be written.

  Raises:
    OutputError: it cannot.
  """

  def look() -> bool:
    if manifest.is_complete(folder) and not overwrite:
      return True
    manifest.check_output(folder, overwrite=overwrite, copies=copies)
    return False

  return processes.from_main(look, f"look at {folder.name}")


def _writer(folder: Path) -> MetricsWriter | None:
  return MetricsWriter(folder / "metrics.jsonl") if processes.is_main() else None


def train_stage(
  threat: Threat,
  images: np.ndarray | Batch,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
  global_batch_size: int,
  scratch_folder: Path,
  checkpoint_every: int,
  steps_per_call: int,
  label: str,
  progress: bool = True,
) -> Params:
  """Trains a threat's theta on pictures; returns it, averaged where the threat keeps an average.

  The parameters to sample with are `threat.trainable.merge(theta, params)`; for a threat that
  trains all of them, theta itself. theta is whole on a device of this process, in every process.

  Args:
    threat: what is trained, and how.
    images: uint8 (N, H, W, 3), or batches of them that are arranged already, with prompts.
    key: root of every draw.
    params: of the model to start from; None starts afresh.
    mesh: devices.
    global_batch_size: pictures in a step, over all devices.
    scratch_folder: for checkpoints and metrics.jsonl.
    checkpoint_every: steps.
    steps_per_call: between two looks at the numbers.
    label: for the progress bar.
    progress: show a bar.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run`.
  """
  if isinstance(images, np.ndarray):
    images = training.make_batches(images, global_batch_size)
  data = parallel.place_batches(images, mesh)
  if params is not None and threat.needs_params:
    params = parallel.place(params, placement.param_shardings(params, mesh))
  shardings = placement.param_shardings(jax.eval_shape(threat.init, key, params), mesh)
  state = rounds.run_once(threat.init, out_shardings=shardings)(key, params)
  frozen = params if threat.needs_params else None
  batch = data.ids.shape[1]
  leaves, structure = jax.tree.flatten(shardings)
  update = _update_in_place(threat, structure, tuple(leaves))

  def advance(state: Any, position: int) -> loop.Advance:
    num_steps = min(steps_per_call, threat.train_steps - position)
    start = time.monotonic()
    state, losses = update(key, state, data, num_steps, frozen)
    numbers = rounds.fetched(_train_metrics(losses, state.params))
    rate = num_steps * batch / (time.monotonic() - start)
    return loop.Advance(state, position + num_steps, numbers | {"images_per_s": rate})

  writer = _writer(scratch_folder)
  state = loop.run(
    advance,
    state,
    total=threat.train_steps,
    label=label,
    unit="step",
    checkpoints=Checkpoints(scratch_folder / "checkpoints", every=checkpoint_every, keep=1),
    writer=writer,
    must_be_finite=("loss", "params_norm"),
    shown=("loss", "images_per_s"),
    progress=progress and processes.is_main(),
  )
  if writer is not None:
    writer.close()
  return jax.device_put(parallel.to_host(threat.final(state)))


@cache  # One compilation for all the models that one threat trains.
def _update_in_place(threat: Threat, structure: Any, shardings: tuple[Any, ...]) -> Callable:
  """`threat.update` with its state where `placement` says, from step to step."""
  where = jax.tree.unflatten(structure, shardings)
  return jax.jit(threat.update, static_argnums=3, donate_argnums=1, out_shardings=(where, None))


@jax.jit
def _train_metrics(losses: jax.Array, params: Params) -> dict[str, jax.Array]:
  return {"loss": jnp.mean(losses), "params_norm": optax.tree.norm(params)}


def sample_stage(
  threat: Threat,
  params: Params,
  folder: Path,
  *,
  key: jax.Array,
  num_samples: int,
  per_device_batch_size: int,
  record: Mapping[str, Any],
  label: str,
  cond: np.ndarray | None = None,
  uncond: np.ndarray | None = None,
  overwrite: bool = False,
  progress: bool = True,
) -> np.ndarray:
  """Writes `num_samples` generated pictures, or reads them when that was done before.

  A process samples its share of the batches. A batch's draws depend on its number, so the samples
  do not depend on the number of processes.

  Args:
    threat: how to sample.
    params: whole, on a device of this process.
    folder: for the files and their manifest.
    key: root of every draw.
    num_samples: of all processes together.
    per_device_batch_size: pictures in a batch.
    record: what the manifest says of the method.
    label: for the progress bar.
    cond: (P, ...), prompts of a conditioned model, which take turns; None for other models.
    uncond: (1, ...), the empty or negative prompt.
    overwrite: replace a finished folder of ours.
    progress: show a bar.

  Returns:
    uint8 (num_samples, H, W, 3) as read back from the files.
  """
  if not _is_done(folder, overwrite):
    size = min(per_device_batch_size, num_samples)
    batches = processes.share(-(-num_samples // size))
    quiet = not (progress and processes.is_main())
    with tqdm(batches, desc=label, unit="batch", disable=quiet) as bar:
      chunks = [np.asarray(_sample(threat, key, i, params, size, cond, uncond)) for i in bar]
    rows = np.arange(num_samples)
    rows = rows[np.isin(rows // size, batches)]
    images = np.concatenate(chunks)[: len(rows)] if chunks else np.zeros((0, 1, 1, 3), np.uint8)
    names = [f"{i:05d}" for i in range(num_samples)]
    manifest.write_folder(folder, images, names, rows=rows, record=record, overwrite=overwrite)
  return manifest.read_folder(folder)[0].images


def _sample(
  threat: Threat,
  key: jax.Array,
  number: int,
  params: Params,
  size: int,
  cond: np.ndarray | None,
  uncond: np.ndarray | None,
) -> jax.Array:
  turn = None if cond is None else cond[np.arange(number * size, (number + 1) * size) % len(cond)]
  return quantise(threat.sample(jax.random.fold_in(key, number), params, size, turn, uncond))
