"""Asynchronous checkpoints of a running stage, written whole or not at all (orbax)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from udp_jax.runtime.files import output_errors


@contextlib.contextmanager
def _write_errors(folder: Any) -> Iterator[None]:
  """`output_errors` that also understands how orbax's storage library reports a failed write."""
  with output_errors(folder):
    try:
      yield
    except ValueError as error:
      if not (found := re.search(r"os_error_code='(\d+)'", str(error))):
        raise
      code = int(found[1])
      raise OSError(code, os.strerror(code)) from error


class Checkpoints:
  """A folder of checkpoints of one state; all processes of a run open it together.

  Saving runs in the background and publishes a checkpoint by a rename, so a process killed at any
  moment leaves only whole checkpoints behind.
  """

  def __init__(self, folder: str | os.PathLike, *, every: int, keep: int = 2):
    """Opens the folder and creates it if needed.

    Args:
      folder: a folder that only this stage uses.
      every: number of positions (rounds or steps) between checkpoints.
      keep: number of newest checkpoints to keep.

    Raises:
      OutputError: the folder cannot be created.
    """
    folder = Path(folder).absolute()
    self.every = every
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    with output_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(folder, options=options)

  def latest(self) -> int | None:
    """Returns the position of the newest checkpoint, or None if there is none."""
    return self._manager.latest_step()

  def restore(self, template: Any, position: int | None = None) -> Any:
    """Returns the state saved at `position` (default: the newest), shaped and placed as `template`.

    Another number of processes or devices may have saved it.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.StandardRestore(abstract)
    position = self._manager.latest_step() if position is None else position
    return self._manager.restore(position, args=args)

  def save(self, position: int, state: Any, *, wait: bool = False) -> None:
    """Saves in the background, or before returning if `wait`. A repeated position is skipped.

    Raises:
      OutputError: the disk is full or read-only.
    """
    with _write_errors(self._manager.directory):
      if position != self._manager.latest_step():
        self._manager.save(position, args=ocp.args.StandardSave(state))
      if wait:
        self._manager.wait_until_finished()

  def due(self, before: int, after: int) -> bool:
    """Returns whether a checkpoint is due between positions `before` and `after`."""
    return before // self.every != after // self.every

  def close(self) -> None:
    """Waits for pending writes and closes the manager."""
    with _write_errors(self._manager.directory):
      self._manager.wait_until_finished()
      self._manager.close()
