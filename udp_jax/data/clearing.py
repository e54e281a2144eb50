"""Clears a work folder: deletes our own files, unless one may be a picture's last copy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from udp_jax.data import naming, originals, output
from udp_jax.errors import OutputError
from udp_jax.runtime import files
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.runtime.workdir import CONFIG


def clear(workdir: Path) -> None:
  """Deletes the clean reference, protected pictures and stages of a run, but no foreign files.

  Nothing is deleted if a file in the way is not ours or may be the last copy of a picture. The
  config is deleted last, so that a kill in between leaves a folder of the old run.

  Raises:
    OutputError: the folder is not ours, foreign files lie among ours, or the source of a clean
      picture is gone or has changed.

  >>> import tempfile
  >>> from udp_jax.runtime import workdir
  >>> with tempfile.TemporaryDirectory() as place:
  ...   workdir.mark(Path(place))
  ...   (Path(place) / "mine.txt").touch()
  ...   clear(Path(place))
  ...   (Path(place) / "mine.txt").exists()  # Not ours.
  True
  """
  if not workdir_lib.is_ours(workdir):
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


def _stage_files(stages: Path) -> Iterator[Path]:
  """Yields the files that runs write below workdir/stages (checkpoints, records), not pictures."""
  for root, _, names in os.walk(stages):
    parts = Path(root).relative_to(stages).parts
    for name in names:
      path = Path(root, name)
      inside = "checkpoints" in parts and path.suffix.lower() not in naming.SUFFIXES
      record = path.suffix == ".json" and originals.is_record(workdir_lib.read_object(path))
      if inside or record or name in ("metrics.jsonl", "groups.json") or files.is_temporary(name):
        yield path


def _remove_empty(folder: Path) -> None:
  for root, _, _ in os.walk(folder, topdown=False):
    with contextlib.suppress(OSError):
      os.rmdir(root)
