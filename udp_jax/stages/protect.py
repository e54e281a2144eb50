"""The stage that protects pictures of one size."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from udp_jax import protections
from udp_jax.data import batches as batches_lib
from udp_jax.data import images, manifest
from udp_jax.data.batches import Batch
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import sharded
from udp_jax.models.base import DiffusionModel
from udp_jax.models.context import Model
from udp_jax.ops import visibility
from udp_jax.protections import constraints
from udp_jax.protections.base import Protection
from udp_jax.runtime import loop
from udp_jax.stages import rounds
from udp_jax.stages.records import Extra, Row, Run

_log = logging.getLogger(__name__)
_NO_MORE = Extra()
_SHOWN = ("train_loss", "max_loss", "min_images_per_s", "max_images_per_s")


def build_protection(row: Row, model: DiffusionModel, *, trained: bool) -> Protection:
  """Builds the protection of a row.

  Args:
    row: method and options.
    model: the attacked model.
    trained: whether trained parameters of `model` are available.

  Raises:
    ConfigError: the method or its options do not fit, a trained model is needed, or the method
      imitates another row and none is named.
  """
  measured = {} if row.probs is None else {"probs": row.probs}
  protection = protections.build(row.method, model, {**row.options, **measured})
  if protection.needs_params and not trained:
    raise ConfigError(
      f"{row.method} attacks a trained model: give --model=FOLDER (or --config.model.path=FOLDER) "
      "in diffusers' layout, or tiny_ldm for the one in the package; `python -m experiments.train` "
      "makes one"
    )
  if protection.needs_reference and row.imitates is None:
    raise ConfigError(f"{row.name} imitates another row: set config.protections.{row.name}.of")
  return protection


def protect(
  row: Row, model: Model, clean: ImageSet, folder: Path, run: Run, *, extra: Extra = _NO_MORE
) -> np.ndarray:
  """Protects a set of pictures and writes them, or reads the files that an earlier run wrote.

  Args:
    row: the method, its options and its budget, which holds for every saved file.
    model: the attacked model.
    clean: the 8-bit reference.
    folder: where the protected files and their manifest are written.
    run: devices, draws, batches and checkpoints.
    extra: data that belong to the pictures beside their pixels.

  Returns:
    uint8 (N, H, W, 3) as read back from the files.

  Raises:
    ConfigError: the method or its options do not fit.
    DivergedError, OutputError, Preempted: as `loop.run` and `manifest.write_folder`.
  """
  if manifest.is_done(folder, run.overwrite, run.copies):
    return manifest.read_folder(folder)[0].images
  limit, grey = None, _grey(clean)
  if row.spare_flat:
    each = (
      visibility.spared_limit(c, row.radius_255, strength=row.spare_flat) for c in clean.images
    )
    limit = np.stack(list(each))
  batches = batches_lib.make_batches(
    clean.images,
    run.global_batch_size,
    reference=extra.reference,
    cond=extra.cond,
    limit=limit,
    grey=grey,
  )
  rows, delta = run_rounds(row, model, batches, len(clean.images), run)
  if grey is not None:
    # The channels differ only by rounding: a compiler may order sums differently for each.
    mean = delta.mean(axis=-1, keepdims=True)
    delta = np.where(grey[rows].reshape(-1, 1, 1, 1) > 0, mean, delta)
  bound = row.radius_255 if limit is None else limit[rows]
  protected = constraints.saved(clean.images[rows], delta, bound)
  manifest.write_folder(
    folder,
    protected,
    clean.names,
    clean=clean.images,
    details=manifest.Details(
      rows, limit, clean.alphas, clean.metadata, clean.beside, extra.sources
    ),
    record={**row.record, "radius_255": row.radius_255, "origin": clean.origin},
    overwrite=run.overwrite,
    copies=run.copies,
  )
  return manifest.read_folder(folder)[0].images


def _grey(clean: ImageSet) -> np.ndarray | None:
  """Returns (N,) uint8, 1 for grey pictures that come from files; None if there are none.

  Pictures of data sets without files keep the layout of their set.
  """
  if clean.metadata is None:
    return None
  grey = images.is_grey(clean.images).astype(np.uint8)
  return grey if grey.any() else None


def run_rounds(
  row: Row, model: Model, batches: Batch, count: int, run: Run
) -> tuple[np.ndarray, np.ndarray]:
  """Runs all rounds of a row, from the newest checkpoint if there is one.

  Args:
    row: the method and its options.
    model: the attacked model.
    batches: leaves (num_batches, B, ...), in host memory.
    count: number of pictures in `batches`, without padding.
    run: devices, draws and checkpoints.

  Returns:
    rows (n,), the numbers of this process's pictures, and delta (n, H, W, C), their perturbations
    in float32 on the [0, 1] scale.

  Raises:
    ConfigError: the method or its options do not fit.
    DivergedError, OutputError, Preempted: as `loop.run`.
  """
  split = sharded.split_weights(model.model, run.mesh)
  protection = build_protection(row, split, trained=model.params is not None)
  _log.info("%s: compiling for %d pictures", run.label, count)
  made = rounds.made(protection, batches, count, model.params, run)
  work = loop.Work(
    run.label,
    "round",
    1 if protection.drawn_once else row.num_rounds,
    must_be_finite=("train_loss", "delta_rms_255"),
    shown=_SHOWN,
    progress=run.progress,
    afterwards=run.afterwards,
  )
  every = run.checkpoint_every
  state = loop.run_in(run.folder, made.advance, made.state, work, every=every)
  return made.own_delta(state)
