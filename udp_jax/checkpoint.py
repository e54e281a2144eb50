"""Checkpoints of a running stage: asynchronous, keep-N, whole or not there at all (orbax)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from udp_jax.data.files import output_errors


@contextlib.contextmanager
def _write_errors(folder: Any) -> Iterator[None]:
  """`output_errors`, also for what orbax's storage library makes of a failed write."""
  with output_errors(folder):
    try:
      yield
    except ValueError as error:
      if not (found := re.search(r"os_error_code='(\d+)'", str(error))):
        raise
      code = int(found[1])
      raise OSError(code, os.strerror(code)) from error


class Checkpoints:
  """A folder of checkpoints of one state, newest last; all processes of a run open it together.

  Saving runs in the background and becomes visible by a rename, so a process killed at any moment
  leaves only whole checkpoints behind.
  """

  def __init__(self, folder: str | os.PathLike, *, every: int, keep: int = 2):
    """Opens or makes the folder.

    Args:
      folder: of this stage alone.
      every: positions between checkpoints.
      keep: how many of the newest are kept.

    Raises:
      OutputError: the folder cannot be made.
    """
    folder = Path(folder).absolute()
    self.every = every
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    with output_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(folder, options=options)

  def latest(self) -> int | None:
    """Position of the newest checkpoint, None without one."""
    return self._manager.latest_step()

  def restore(self, template: Any, position: int | None = None) -> Any:
    """The state at `position` (default: the newest), with `template`'s structure and shardings.

    It may have been saved by another number of processes or devices.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.StandardRestore(abstract)
    position = self._manager.latest_step() if position is None else position
    return self._manager.restore(position, args=args)

  def save(self, position: int, state: Any, *, wait: bool = False) -> None:
    """Saves in the background unless told to wait. Saving a position twice does nothing.

    Raises:
      OutputError: the disk is full or read-only.
    """
    with _write_errors(self._manager.directory):
      if position != self._manager.latest_step():
        self._manager.save(position, args=ocp.args.StandardSave(state))
      if wait:
        self._manager.wait_until_finished()

  def due(self, before: int, after: int) -> bool:
    """Whether a checkpoint falls between two positions."""
    return before // self.every != after // self.every

  def close(self) -> None:
    """Waits for what is being written."""
    with _write_errors(self._manager.directory):
      self._manager.wait_until_finished()
      self._manager.close()
