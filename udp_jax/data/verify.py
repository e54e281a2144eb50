"""Checks that a protected folder keeps its budget, from the files alone, whoever made them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from udp_jax.data import images, listing, naming
from udp_jax.data.budget import check_radius_255
from udp_jax.data.manifest import INCOMPLETE, max_abs_255
from udp_jax.errors import MissingDataError, UserError


class FileReport(NamedTuple):
  """The result for one pair of files.

  Attributes:
    name: common relative name without extension.
    max_abs_255: largest |protected - clean| in 8-bit levels, or None if it cannot be measured.
    problem: why the pair fails, or None.
    notes: remarks that are not failures.
  """

  name: str
  max_abs_255: int | None
  problem: str | None = None
  notes: tuple[str, ...] = ()


class VerifyReport(NamedTuple):
  """The result of `verify`.

  Attributes:
    ok: whether every file has its counterpart and keeps the budget.
    failures: the pairs that fail.
    checked: number of pairs measured.
    worst: the pair with the largest difference, or None if no pair was measured.
    files: all pairs, sorted by name.
    radius_255: the budget in 8-bit levels.
  """

  ok: bool
  failures: tuple[FileReport, ...]
  checked: int
  worst: FileReport | None
  files: tuple[FileReport, ...]
  radius_255: float


def verify(
  clean_dir: str | os.PathLike, protected_dir: str | os.PathLike, radius_255: float
) -> VerifyReport:
  """Compares all images of two folders, matched by relative name without extension.

  Colours are compared as stored, including those of transparent pixels; alpha is not compared.

  Args:
    clean_dir: folder of the originals, in any format that `images.read_image` reads.
    protected_dir: folder of the protected files.
    radius_255: the budget: largest allowed |protected - clean| of any sample, in 8-bit levels.

  Raises:
    MissingDataError: a folder does not exist or holds no image.
    ConfigError: the budget is not a number from 0 to 255.

  >>> import tempfile
  >>> import numpy as np
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/in/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   verify(f"{place}/in", f"{place}/in", 8).ok
  True
  """
  check_radius_255("radius_255", radius_255, least=0)
  clean_scan, protected_scan = listing.scan(clean_dir), listing.scan(protected_dir)
  clean = {naming.composed(file.name): file.path for file in clean_scan.files}
  protected = {naming.composed(file.name): file.path for file in protected_scan.files}
  for place, found in ((clean_dir, clean), (protected_dir, protected)):
    if not found:
      raise MissingDataError(f"{os.fspath(place)}: no images in it, nothing to verify")
  reports = []
  for name in sorted(clean.keys() | protected.keys()):
    if name not in clean:
      reports.append(FileReport(name, None, f"no clean counterpart of {protected[name]}"))
    elif name not in protected:
      reports.append(_without_protected(name, clean[name], Path(protected_dir)))
    else:
      reports.append(_compare(name, clean[name], protected[name], radius_255))
  reports.extend(FileReport(file, None, reason) for file, reason in protected_scan.unusable)
  if (Path(protected_dir) / INCOMPLETE).exists():
    reports.append(FileReport(INCOMPLETE, None, f"{protected_dir}: its writing was interrupted"))
  measured = [report for report in reports if report.max_abs_255 is not None]
  failures = tuple(report for report in reports if report.problem is not None)
  worst = max(measured, key=lambda report: report.max_abs_255 or 0, default=None)
  return VerifyReport(
    ok=not failures and bool(measured),
    failures=failures,
    checked=len(measured),
    worst=worst,
    files=tuple(reports),
    radius_255=radius_255,
  )


def _without_protected(name: str, clean: Path, protected_dir: Path) -> FileReport:
  try:
    images.read_image(clean)
  except UserError as error:
    # A stage skips unreadable files, so a missing counterpart is expected here.
    return FileReport(name, None, None, (f"skipped: {error}",))
  return FileReport(name, None, f"no protected counterpart of {clean} in {protected_dir}")


def _compare(name: str, clean_path: Path, protected_path: Path, radius_255: float) -> FileReport:
  try:
    clean = images.read_image(clean_path)
    protected = images.read_image(protected_path)
    lossy = images.is_lossy(protected_path)
  except UserError as error:
    return FileReport(name, None, str(error))
  notes = tuple(f"clean: {note}" for note in clean.notes)
  notes += tuple(f"protected: {note}" for note in protected.notes)
  if lossy:
    notes += (f"{protected_path.name} is stored with losses, which weaken a protection",)
  if clean.pixels.shape != protected.pixels.shape:
    (h0, w0), (h1, w1) = clean.pixels.shape[:2], protected.pixels.shape[:2]
    problem = (
      f"{protected_path} is {w1}x{h1} but {clean_path} is {w0}x{h0}; compare with the resized "
      "clean images that the protection started from"
    )
    return FileReport(name, None, problem, notes)
  levels = max_abs_255(clean.pixels, protected.pixels)
  if levels > radius_255:
    problem = f"{protected_path}: {levels} levels from its clean image, budget {radius_255:g}"
    return FileReport(name, levels, problem, notes)
  return FileReport(name, levels, None, notes)
