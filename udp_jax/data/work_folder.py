"""Work folders: how ours are told from others, and what may be deleted in one.

A work folder holds clean references, checkpoints and records, and the hidden file `.udp-work`, by
which it is recognised. Those of versions that wrote none are told by their config.json or
settings.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udp_jax.data import files, images, originals, output
from udp_jax.errors import OutputError

MARK = ".udp-work"
CONFIG = "config.json"
SETTINGS = "settings.json"

# Of the files in which a run without the mark says what it is: some of their fields.
_FIELDS = {
  CONFIG: {"data", "seed", "performance"},
  SETTINGS: {"method", "options", "seed", "pictures"},
  "bench.json": {"header", "rows"},
}
# Names that runs write at the top of a work folder.
_WRITTEN = frozenset(
  "config.json settings.json data.json results.json run.json report.json report.html cells.csv "
  "bench.json bench.md metrics.jsonl losses.png samples.png reconstructions.png "
  "clean holdout protected stages threats cells measured records checkpoints model adapter samples "
  "class_pictures autoencoder denoiser photographs".split()
)


def mark(workdir: Path) -> None:
  """Writes the mark of a work folder of ours, if it is not there."""
  if not (workdir / MARK).is_file():
    files.write_json(workdir / MARK, {"made_by": "udp_jax", "format": 1})


def is_ours(folder: str | os.PathLike) -> bool:
  """Whether a folder is a work folder of ours."""
  folder = Path(folder)
  if (folder / MARK).is_file():
    return True
  return any(fields <= _read(folder / name).keys() for name, fields in _FIELDS.items())


def check(workdir: Path) -> None:
  """Raises OutputError if a run would write over what is not ours in a work folder."""
  if not workdir.is_dir() or is_ours(workdir):
    return
  with files.output_errors(workdir):
    clash = sorted(_WRITTEN.intersection(os.listdir(workdir)) - {"photographs"})
  if clash:
    raise OutputError(
      f"{workdir} is no work folder of ours and holds {clash[0]}, which a run would write over; "
      "choose an empty or new folder"
    )


def clear(workdir: Path) -> None:
  """Deletes the clean reference, protected pictures and stages of a run; nobody else's files.

  Nothing is deleted if anything in the way is not ours, or may be the last copy of a picture. The
  config goes last, so that a kill in between leaves a folder of the old run.

  Raises:
    OutputError: the folder is not ours, holds files of others where ours are, or a clean picture
      whose source is gone or is another picture now.
  """
  if not is_ours(workdir):
    raise OutputError(f"{workdir} is no work folder of ours: choose another --workdir")
  clean = workdir / "clean"
  folders = [clean]
  if (workdir / "protected").is_dir():
    folders += sorted(path for path in (workdir / "protected").iterdir() if path.is_dir())
  for folder in folders:
    output.check_ours(folder)
  if lost := originals.lost(clean, workdir / "stages" / "clean"):
    file, why = lost[0]
    raise OutputError(
      f"{clean / file} may be the last copy of a picture: {why} ({len(lost)} such pictures); move "
      "them away first"
    )
  for path in list(_stage_files(workdir / "stages")):
    with files.output_errors(path):
      path.unlink(missing_ok=True)
  _remove_empty(workdir / "stages")
  for folder in reversed(folders):
    output.clear(folder)
  with contextlib.suppress(OSError):
    (workdir / "protected").rmdir()
  with files.output_errors(workdir):
    (workdir / CONFIG).unlink(missing_ok=True)


def discard_checkpoints(folder: Path) -> None:
  """Removes the checkpoints of a finished stage, as orbax names them, from a folder of them."""
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    if path.name.split(".")[0].isdigit() and path.is_dir() and not path.is_symlink():
      shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(OSError):
    folder.rmdir()


def _stage_files(stages: Path) -> Iterator[Path]:
  """What runs write below workdir/stages: checkpoints, records, curves; never pictures."""
  for root, _, names in os.walk(stages):
    parts = Path(root).relative_to(stages).parts
    for name in names:
      path = Path(root, name)
      inside = "checkpoints" in parts and path.suffix.lower() not in images.SUFFIXES
      record = path.suffix == ".json" and originals.is_record(_read(path))
      if inside or record or name in ("metrics.jsonl", "groups.json") or files.is_temporary(name):
        yield path


def _remove_empty(folder: Path) -> None:
  for root, _, _ in os.walk(folder, topdown=False):
    with contextlib.suppress(OSError):
      os.rmdir(root)


def _read(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}
