"""The stage that samples pictures from a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from udp_jax.data import manifest
from udp_jax.models.base import Params
from udp_jax.models.sampling import SampleFn
from udp_jax.ops.image import quantise
from udp_jax.runtime import processes
from udp_jax.stages.records import Run


class Asked(NamedTuple):
  """Prompts for sampling, and what the manifest records about them.

  Attributes:
    cond: (P, ...), prompts of a conditioned model, used in turn; None for other models.
    uncond: (1, ...), the empty or negative prompt.
    record: what the manifest records about the samples.
  """

  cond: np.ndarray | None = None
  uncond: np.ndarray | None = None
  record: Mapping[str, Any] = {}


def sample(
  draw: SampleFn, params: Params, folder: Path, run: Run, *, num_samples: int, asked: Asked
) -> np.ndarray:
  """Writes `num_samples` generated pictures, or reads the files that an earlier run wrote.

  Each process samples its share of the batches. A batch's draws depend on its number, so the
  samples do not depend on the number of processes.

  Args:
    draw: samples one batch, `Threat.sample`.
    params: parameters of the whole model, on a device of this process.
    folder: where the files and their manifest are written.
    run: its key, `sample_batch_size`, label, `overwrite` and `progress` are used.
    num_samples: number of pictures over all processes.
    asked: prompts, and the record for the manifest.

  Returns:
    uint8 (num_samples, H, W, 3) as read back from the files.
  """
  if not manifest.is_done(folder, run.overwrite):
    size = min(run.sample_batch_size, num_samples)
    batches = processes.share(-(-num_samples // size))
    quiet = not (run.progress and processes.is_main())
    with tqdm(batches, desc=run.label, unit="batch", disable=quiet) as bar:
      chunks = [np.asarray(_batch(draw, run.key, i, params, size, asked)) for i in bar]
    rows = np.arange(num_samples)
    rows = rows[np.isin(rows // size, batches)]
    images = np.concatenate(chunks)[: len(rows)] if chunks else np.zeros((0, 1, 1, 3), np.uint8)
    names = [f"{i:05d}" for i in range(num_samples)]
    details = manifest.Details(rows)
    manifest.write_folder(
      folder, images, names, details=details, record=asked.record, overwrite=run.overwrite
    )
  return manifest.read_folder(folder)[0].images


def _batch(
  draw: SampleFn, key: jax.Array, number: int, params: Params, size: int, asked: Asked
) -> jax.Array:
  cond = asked.cond
  turn = None if cond is None else cond[np.arange(number * size, (number + 1) * size) % len(cond)]
  return quantise(draw(jax.random.fold_in(key, number), params, size, turn, asked.uncond))
