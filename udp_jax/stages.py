"""The stages of a run: each reads folders and writes folders, and goes on where it was killed.

  protect_stage   clean pictures            -> folder of protected 8-bit files
  train_stage     folder of pictures        -> model folder (diffusers layout)
  sample_stage    model                     -> folder of generated pictures
A folder whose manifest is there is done and is not made again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from udp_jax import loop, parallel, training
from udp_jax.checkpoint import Checkpoints
from udp_jax.data import manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.metrics_writer import MetricsWriter
from udp_jax.models.base import Params
from udp_jax.ops.image import quantise, quantise_within
from udp_jax.protections.base import WHOLE, Protection
from udp_jax.threats.base import Threat

_log = logging.getLogger(__name__)

# Rounds between two that are dispatched in parts, so that the min and max steps are timed apart.
_TIMED_EVERY = 5
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def protect_stage(
  protection: Protection,
  clean: ImageSet,
  folder: Path,
  *,
  key: jax.Array,
  params: Params | None,
  mesh: Mesh,
  radius_255: float,
  num_rounds: int,
  global_batch_size: int,
  scratch_folder: Path,
  checkpoint_every: int,
  label: str,
  record: Mapping[str, Any],
  reference: np.ndarray | None = None,
  overwrite: bool = False,
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
    num_rounds: updates.
    global_batch_size: pictures in a batch, over all devices.
    scratch_folder: for checkpoints and metrics.jsonl.
    checkpoint_every: rounds.
    label: for the progress bar.
    record: what the manifest says of the method.
    reference: pictures of another method, for the controls that imitate it.
    overwrite: replace a finished folder of ours.
    progress: show a bar.

  Returns:
    uint8 (N, H, W, 3) as read back from the files.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run` and `data.manifest`.
  """
  if manifest.is_complete(folder) and not overwrite:
    return manifest.read_folder(folder)[0].images
  manifest.check_output(folder, overwrite=overwrite)
  count = len(clean.images)
  batches = training.make_batches(clean.images, global_batch_size, reference=reference)
  data = parallel.place_batches(batches, mesh)
  params = None if params is None else parallel.replicate(params, mesh)
  _log.info("%s: compiling for %d pictures", label, count)
  started = time.monotonic()
  state = run_once(protection.init)(key, data, params)
  jitted = jax.jit(protection.update, donate_argnums=1)
  update = jitted.lower(key, state, data, params, jnp.int32(WHOLE)).compile()
  rms_255 = jax.jit(lambda delta: 255 * jnp.sqrt(jnp.mean(jnp.square(delta))))
  compile_seconds = time.monotonic() - started

  def advance(state: Any, position: int) -> loop.Advance:
    timed = bool(protection.phases) and position % _TIMED_EVERY == 0
    numbers: dict[str, float] = {"compile_seconds": compile_seconds} if position == 0 else {}
    for phase in protection.phases if timed else (WHOLE,):
      start = time.monotonic()
      state, info = update(key, state, data, params, jnp.int32(phase))
      measured = _round_metrics(info, data.weight)
      # A part that does not run reports NaN; it must not hide what the other part measured.
      numbers |= {k: v for k, v in measured.items() if timed is False or np.isfinite(v)}
      seconds = time.monotonic() - start
      if timed and "train_loss" in measured and np.isfinite(measured["train_loss"]):
        numbers["min_images_per_s"] = info.train_loss.size * data.ids.shape[1] / seconds
      elif timed and np.isfinite(measured["max_loss"]):
        numbers["max_images_per_s"] = protection.perturb_steps * count / seconds
      elif not timed:
        numbers["images_per_s"] = count / seconds
    # Also the guard of what will be saved: a delta that is not finite shows here.
    numbers["delta_rms_255"] = float(rms_255(state.delta))
    return loop.Advance(state, position + 1, numbers)

  shown = ("train_loss", "max_loss", "min_images_per_s", "max_images_per_s")
  writer = MetricsWriter(scratch_folder / "metrics.jsonl")
  state = loop.run(
    advance,
    state,
    total=num_rounds,
    label=label,
    unit="round",
    checkpoints=Checkpoints(scratch_folder / "checkpoints", every=checkpoint_every),
    writer=writer,
    must_be_finite=("train_loss", "delta_rms_255"),
    shown=shown,
    progress=progress,
  )
  writer.close()
  delta = jnp.asarray(training.unbatch(state.delta, count))
  protected = np.asarray(quantise_within(clean.images, delta, radius_255))
  manifest.write_folder(
    folder,
    protected,
    clean.names,
    clean=clean.images,
    alphas=clean.alphas,
    metadata=clean.metadata,
    record={**record, "radius_255": radius_255, "origin": clean.origin},
    overwrite=overwrite,
  )
  return manifest.read_folder(folder)[0].images


def run_once(function: Callable) -> Callable:
  """`jax.jit` for what runs a single time, like drawing parameters: hardly optimised.

  XLA's CPU backend takes longer to optimise the draws of a U-Net's parameters than its training
  step.
  """
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(function, compiler_options=_QUICK if on_cpu else None)


def _round_metrics(info: Any, weight: jax.Array) -> dict[str, float]:
  """Host numbers of one round; blocks until it is done."""
  losses = -np.asarray(info.loss, np.float64)
  used = np.asarray(weight) > 0
  metrics = {"max_loss": float(losses[used].mean())}
  if info.train_loss.size:
    metrics["train_loss"] = float(np.mean(info.train_loss))
  return metrics


def train_stage(
  threat: Threat,
  images: np.ndarray,
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
  """Trains a threat's model on 8-bit pictures (N, H, W, 3); returns the parameters to sample with.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `loop.run`.
  """
  data = parallel.place_batches(training.make_batches(images, global_batch_size), mesh)
  state = parallel.replicate(run_once(threat.init)(key, params), mesh)
  batch = data.ids.shape[1]
  norm = jax.jit(optax.tree.norm)

  def advance(state: Any, position: int) -> loop.Advance:
    num_steps = min(steps_per_call, threat.train_steps - position)
    start = time.monotonic()
    state, losses = threat.update(key, state, data, num_steps)
    loss, params_norm = float(np.mean(losses)), float(norm(state.params))
    rate = num_steps * batch / (time.monotonic() - start)
    numbers = {"loss": loss, "params_norm": params_norm, "images_per_s": rate}
    return loop.Advance(state, position + num_steps, numbers)

  writer = MetricsWriter(scratch_folder / "metrics.jsonl")
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
    progress=progress,
  )
  writer.close()
  return threat.final(state)


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
  overwrite: bool = False,
  progress: bool = True,
) -> np.ndarray:
  """Writes `num_samples` generated pictures, or reads them when that was done before.

  Returns:
    uint8 (num_samples, H, W, 3).
  """
  if manifest.is_complete(folder) and not overwrite:
    return manifest.read_folder(folder)[0].images
  manifest.check_output(folder, overwrite=overwrite)
  size = min(per_device_batch_size, num_samples)
  chunks: list[np.ndarray] = []
  starts = range(0, num_samples, size)
  for i, _ in enumerate(tqdm(starts, desc=label, unit="batch", disable=not progress)):
    chunk = threat.sample(jax.random.fold_in(key, i), params, size)
    chunks.append(np.asarray(quantise(chunk)))
  images = np.concatenate(chunks)[:num_samples]
  names = [f"{i:05d}" for i in range(num_samples)]
  manifest.write_folder(folder, images, names, record=record, overwrite=overwrite)
  return images
