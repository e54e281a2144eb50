"""Records that group the arguments of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax.ops.keys import stream


class Row(NamedTuple):
  """A row of a study: a method with its options, and the budget that its files keep.

  Attributes:
    name: name of the row and of its folders.
    method: a module of `udp_jax.protections`.
    options: keyword arguments of the method's constructor, flat, as configs spell them.
    num_rounds: number of updates; a method that draws delta once ignores it.
    radius_255: the largest change of any value of a saved file, in 8-bit levels.
    imitates: the row whose pictures a control imitates.
    spare_flat: strength of `ops.visibility.spared_limit`, in [0, 1]; 0 is off.
    record: what the manifest records about the row.
    probs: (T,) distribution over timesteps where the option `probs` is "measured"; None elsewhere.
  """

  name: str
  method: str
  options: Mapping[str, Any]
  num_rounds: int
  radius_255: float
  imitates: str | None = None
  spare_flat: float = 0.0
  record: Mapping[str, Any] = {}
  probs: np.ndarray | None = None

  @property
  def trains_text(self) -> bool:
    """Whether the text encoder is trained, so that prompts must be token ids."""
    return bool(self.options.get("trains") == "denoiser_and_text")

  @property
  def stream(self) -> str:
    """Random stream of the row; a control draws from the stream of the row that it imitates."""
    return f"protect/{self.imitates or self.name}"

  def with_options(self, **options: Any) -> Row:
    """Returns the row with some options replaced."""
    return self._replace(options={**self.options, **options})


@dataclasses.dataclass(frozen=True)
class Run:
  """How one stage runs: devices, folders, checkpoints, draws and progress.

  Attributes:
    mesh: devices.
    folder: scratch folder of the stage: checkpoints and metrics.jsonl.
    key: root of all draws of the stage.
    label: name on the progress bar and in messages.
    global_batch_size: pictures in a batch, over all devices.
    checkpoint_every: rounds or steps between two checkpoints.
    steps_per_call: training steps in one compiled call.
    sample_batch_size: pictures that a device samples or purifies at a time.
    shard_batches: batches that the devices hold at a time while pictures are streamed; 0 for all.
    overwrite: whether to replace a finished output folder that this library wrote.
    copies: names of pictures that also exist outside an output to be replaced; None if that was
      not checked yet.
    progress: whether to show progress bars.
    afterwards: work of later parts of the stage, as a multiple of this one's, for estimates.
  """

  mesh: Mesh
  folder: Path
  key: jax.Array
  label: str
  global_batch_size: int = 0
  checkpoint_every: int = 0
  steps_per_call: int = 50
  sample_batch_size: int = 256
  shard_batches: int = 0
  overwrite: bool = False
  copies: Collection[str] | None = None
  progress: bool = True
  afterwards: float = 0.0

  def at(self, folder: Path, label: str) -> Run:
    """Returns the same run with another scratch folder and label, for a part of the stage."""
    return dataclasses.replace(self, folder=folder, label=label)

  def drawing(self, name: str) -> Run:
    """Returns the same run with draws of its own, from the stream `name` of its key."""
    return dataclasses.replace(self, key=stream(self.key, name))


class Extra(NamedTuple):
  """Data that belong to the pictures of a stage beside their pixels.

  Attributes:
    reference: (N, H, W, 3) uint8, pictures of another method for controls that imitate it.
    cond: (N, ...), conditioning of the model for each picture.
    sources: for each picture name, what its saved file was made from, for the manifest.
  """

  reference: np.ndarray | None = None
  cond: np.ndarray | None = None
  sources: Mapping[str, Mapping[str, Any]] | None = None
