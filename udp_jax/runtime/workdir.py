"""Recognises our work folders and decides which of their files may be deleted.

A work folder holds clean references, checkpoints, records and the hidden file `.udp-work`, which
marks it as ours. Older versions wrote no mark; their folders are recognised by config.json or
settings.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from udp_jax.errors import ConfigError, OutputError
from udp_jax.runtime import files

MARK = ".udp-work"
CONFIG = "config.json"
SETTINGS = "settings.json"

# Fields that identify the files of a run without the mark.
_FIELDS = {
  CONFIG: {"data", "seed", "performance"},
  SETTINGS: {"method", "options", "seed", "pictures"},
  "bench.json": {"header", "rows"},
}
# Names that runs write at the top level of a work folder.
_WRITTEN = frozenset(
  "config.json settings.json data.json results.json run.json report.json report.html cells.csv "
  "bench.json bench.md metrics.jsonl losses.png samples.png reconstructions.png "
  "clean holdout protected stages threats cells measured records checkpoints model adapter samples "
  "class_pictures autoencoder denoiser photographs".split()
)


_ANOTHER = (
  "{workdir} holds a run with another config ({changed} differ): choose another --workdir, or "
  "delete that folder"
)


def mark(workdir: Path) -> None:
  """Marks a work folder as ours, unless it already is."""
  if not (workdir / MARK).is_file():
    files.write_json(workdir / MARK, {"made_by": "udp_jax", "format": 1})


def is_ours(folder: str | os.PathLike) -> bool:
  """Returns whether a folder is one of our work folders."""
  folder = Path(folder)
  if (folder / MARK).is_file():
    return True
  return any(fields <= read_object(folder / name).keys() for name, fields in _FIELDS.items())


def claim(
  path: Path,
  content: dict[str, Any],
  changed: Callable[[dict[str, Any]], Sequence[str]],
  *,
  clear: Callable[[Path], None] | None = None,
  says: str = _ANOTHER,
) -> None:
  """Records which run owns a work folder, and refuses to mix two runs in one folder.

  Args:
    path: the file at the top of the work folder that identifies its run.
    content: what the new run writes to `path`.
    changed: content on disk -> names of the differing fields that affect the result.
    clear: removes the other run's files from the folder; None if they may not be replaced.
    says: text of the refusal, with placeholders `workdir` and `changed`.

  Raises:
    ConfigError: the folder belongs to another run, and `clear` is None.
  """
  workdir = path.parent
  if path.exists() and (names := changed(files.read_json(path))):
    if clear is None:
      raise ConfigError(says.format(workdir=workdir, changed=", ".join(names)))
    clear(workdir)
  files.write_json(path, content)
  mark(workdir)


def check(workdir: Path) -> None:
  """Raises OutputError if a run would overwrite someone else's files in its work folder."""
  if not workdir.is_dir() or is_ours(workdir):
    return
  with files.output_errors(workdir):
    clash = sorted(_WRITTEN.intersection(os.listdir(workdir)) - {"photographs"})
  if clash:
    raise OutputError(
      f"{workdir} is no work folder of ours and holds {clash[0]}, which a run would write over; "
      "choose an empty or new folder"
    )


def discard_checkpoints(folder: Path) -> None:
  """Removes a finished stage's checkpoints, recognised by orbax's names, from their folder."""
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    if path.name.split(".")[0].isdigit() and path.is_dir() and not path.is_symlink():
      shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(OSError):
    folder.rmdir()


def read_object(path: Path) -> dict[str, Any]:
  """Reads a JSON object from a file; returns {} if the file holds none."""
  try:
    content = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}
