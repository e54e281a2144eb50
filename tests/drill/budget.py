"""Small pictures through both save paths, read again from the disk and measured by NumPy alone.

Pictures, transparency, masks and deltas are drawn a batch at a time. Each batch has one size and
one radius, which is a method's own or drawn; every path that a user's picture can take is taken:

  sets     `constraints.saved` and `data.manifest.write_folder`, as studies do
  singles  `stages.tiles.protected` and `data.picture_folder.write`, as `experiments.protect` does:
           from a clean reference on the disk, by tiles, with masks; the row's radius is another
           than the config's
  not finite   deltas with NaN or infinity anywhere: refused, and nothing is written
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.drill import ledger
from tests.drill.hostile import Worker
from tests.drill.ledger import Try
from udp_jax.errors import UserError

BATCH = 1000
MEMORY = Path("/dev/shm")
KINDS = ("sets", "singles", "not finite")
# Of one clean picture, so that reading and writing it is no large part of the time.
_DELTAS = 20
_SIZES = (
  (1, 1),
  (1, 7),
  (7, 1),
  (2, 2),
  (3, 5),
  (5, 5),
  (8, 8),
  (9, 8),
  (8, 9),
  (11, 11),
  (11, 13),
)
_SIZES += ((12, 24), (13, 13), (15, 16), (16, 16), (17, 11), (17, 17), (19, 23), (23, 24), (24, 24))
_OTHERS = (0.5, 1.0, 1.5, 2.0, 2.55, 3.999, 4.0, 8.0, 12.75, 16.0, 16.5, 31.9, 64.0, 254.5, 255.0)
_TILE, _OVERLAP = 16, 2


@functools.cache
def radii() -> tuple[float, ...]:
  """Every radius that a config gives to all or to one of its methods, and some on the edges."""
  from experiments import _cli

  found = set(_OTHERS)
  for experiment in ("eudp", "udp", "impress"):
    for name in _cli.config_names(experiment):
      config = _cli.get_config(experiment, name)
      found.add(float(config.radius_255))
      for entries in config.get("protections", {}).values():
        found.add(float(entries.get("radius_255", config.radius_255)))
  return tuple(sorted(found))


def draw_radius(generator: np.random.Generator, least: float = 0.5) -> float:
  """A method's own radius, one on an edge, or anything from `least` levels to all of them."""
  if generator.random() < 0.7:
    return float(generator.choice([radius for radius in radii() if radius >= least]))
  return float(np.float32(generator.uniform(least, 255.0)))


def draw_deltas(
  generator: np.random.Generator, shape: tuple[int, ...], radius_255: float
) -> np.ndarray:
  """Deltas (N, H, W, 3) float32 of mixed kinds: inside, on every edge, far outside."""
  count = shape[0]
  unit = generator.uniform(-1.0, 1.0, shape).astype(np.float32)
  sign = np.where(unit < 0, -1.0, 1.0).astype(np.float32)
  levels = np.rint(unit * (radius_255 + 2.0))
  kinds = (
    lambda: unit * (radius_255 / 255.0),
    lambda: sign * (radius_255 / 255.0),
    lambda: sign * (np.floor(radius_255) / 255.0),
    lambda: levels / 255.0,
    lambda: (levels + 0.5) / 255.0,
    lambda: np.nextafter(((levels + 0.5) / 255.0).astype(np.float32), sign),
    lambda: unit * (10.0 * radius_255 / 255.0),
    lambda: sign,
    lambda: unit * np.float32(1e30),
    lambda: unit * np.float32(1e-40),
    lambda: np.where(unit < 0, np.float32(-0.0), np.float32(1e38)),
  )
  which = generator.integers(len(kinds), size=count)
  made = np.empty(shape, np.float32)
  for kind in np.unique(which):
    chosen = which == kind
    made[chosen] = kinds[kind]()[chosen].astype(np.float32)
  return made


def draw_levels(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """uint8 pictures: noise, black, white, and nearly so, where clipping and the budget meet."""
  levels = generator.integers(0, 256, shape, dtype=np.uint8)
  kind = generator.integers(4, size=shape[0]).reshape(-1, *[1] * (len(shape) - 1))
  edges = np.where(levels < 128, levels % 3, 255 - levels % 3)
  return np.select([kind == 0, kind == 1], [edges, np.full_like(levels, 255)], levels).astype(
    np.uint8
  )


def read_again(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
  """Colours (H, W, 3) and transparency (H, W) of a file, by Pillow and not by the package."""
  with Image.open(path) as image:
    has_alpha = "A" in image.mode
    levels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
  return levels[..., :3], levels[..., 3] if has_alpha else None


def broken(
  clean: np.ndarray,
  found: np.ndarray,
  radius_255: float,
  alpha: np.ndarray | None = None,
  found_alpha: np.ndarray | None = None,
  allowed: np.ndarray | None = None,
) -> str:
  """What a saved picture breaks, in words; "" if nothing."""
  if clean.shape != found.shape:
    return f"is {found.shape} instead of {clean.shape}"
  change = np.abs(found.astype(np.int16) - clean)
  if change.max() > radius_255:
    return f"changes {change.max()} levels of {radius_255:g}"
  if allowed is not None and change[~allowed].any():
    return "changes where it may not"
  if (alpha is None) != (found_alpha is None) or (
    alpha is not None and not np.array_equal(alpha, found_alpha)
  ):
    return "has another transparency"
  return ""


def draw_alpha(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """uint8 (H, W): opaque, transparent and half transparent parts."""
  return generator.choice(np.array([0, 1, 128, 255], np.uint8), size)


def sets(generator: np.random.Generator, count: int, folder: Path) -> list[str]:
  """One set of pictures of one size, written together; one line for each that breaks its budget."""
  from udp_jax.data import manifest
  from udp_jax.protections import constraints

  size = _SIZES[generator.integers(len(_SIZES))]
  radius_255 = draw_radius(generator)
  clean = draw_levels(generator, (count, *size, 3))
  delta = draw_deltas(generator, clean.shape, radius_255)
  alphas = [draw_alpha(generator, size) if generator.random() < 0.5 else None for _ in range(count)]
  names = [f"{i % 3}/{i:05d}" for i in range(count)]
  made = constraints.saved(clean, delta, radius_255)
  manifest.write_folder(
    folder / "set",
    made,
    names,
    clean=clean,
    details=manifest.Details(alphas=alphas),
    record={"method": "drill", "radius_255": radius_255},
  )
  said, changed = [], False
  for name, levels, alpha in zip(names, clean, alphas):
    found, found_alpha = read_again(folder / "set" / f"{name}.png")
    changed |= bool((found != levels).any())
    if what := broken(levels, found, radius_255, alpha, found_alpha):
      said.append(f"{name} ({size[1]}x{size[0]}) {what}")
  if radius_255 >= 1 and not changed:
    said.append(f"a set of {count} pictures with radius {radius_255:g} is not changed at all")
  return said


def singles(generator: np.random.Generator, count: int, folder: Path) -> list[str]:
  """Pictures of all modes one by one, with masks; one line for each that breaks its budget."""
  from udp_jax.data import picture_folder

  radius_255 = draw_radius(generator, 1.0)  # A row of a config may not promise less.
  said, changed = [], False
  for number in range(-(-count // _DELTAS)):
    single = _Single(generator, f"{number:04d}", radius_255, folder)
    copies = min(_DELTAS, count - number * _DELTAS)
    deltas = draw_deltas(generator, (copies, single.grid.num_tiles, _TILE, _TILE, 3), radius_255)
    for copy in range(copies):
      clean, made = single.protected(deltas[copy])
      name = f"{number:04d}-{copy:02d}"
      picture_folder.write(
        *(folder / "out", folder / "records", name, made),
        clean=clean.pixels,
        bound=picture_folder.Bound(radius_255),
      )
      found, found_alpha = read_again(folder / "out" / f"{name}.png")
      what = broken(single.levels, found, radius_255, single.alpha, found_alpha, single.allowed)
      changed |= bool((found != single.levels).any())
      if what:
        said.append(f"{name} ({single.mode}) {what}")
  if radius_255 >= 1 and not changed:
    said.append(f"{count} pictures with radius {radius_255:g} are not changed at all")
  return said


class _Single:
  """A clean picture of any mode on the disk, perhaps with a mask, and what protecting it needs."""

  def __init__(self, generator: np.random.Generator, name: str, radius_255: float, folder: Path):
    from udp_jax.data import images, picture_folder
    from udp_jax.data.picture_files import PictureFile, PictureFolder
    from udp_jax.ops import tiles
    from udp_jax.stages import tiles as tiles_lib
    from udp_jax.studies import rows

    height, width = _SIZES[generator.integers(len(_SIZES))]
    self.mode = str(generator.choice(["RGB", "RGBA", "L", "LA"]))
    channels = len(self.mode.removesuffix("A"))
    levels = draw_levels(generator, (1, height, width, channels))[0]
    self.alpha = draw_alpha(generator, (height, width)) if "A" in self.mode else None
    self.levels = np.broadcast_to(levels, (height, width, 3))
    planes = levels if self.alpha is None else np.concatenate([levels, self.alpha[..., None]], -1)
    source = folder / f"{name}.png"
    Image.fromarray(planes[..., 0] if self.mode == "L" else planes).save(source)
    # As `experiments.protect` does: the reference on the disk is what everything starts from.
    picture_folder.write(folder / "clean", folder / "seen", name, images.read_large(source))
    self.allowed = np.ones((height, width), bool) if self.alpha is None else self.alpha > 0
    masks = {}
    if generator.random() < 0.5:
      mask = generator.choice(np.array([0, 127, 128, 255], np.uint8), (height, width))
      mask.reshape(-1)[generator.integers(mask.size)] = 255  # One that is white nowhere is refused.
      Image.fromarray(mask).save(folder / f"{name}-mask.png")
      masks[name] = folder / f"{name}-mask.png"
      self.allowed &= mask >= 128
    self.file = PictureFile(name, source, f"{name}.png", height, width, "")
    self.grid = tiles.plan(height, width, _TILE, overlap=_OVERLAP)
    self.row = rows.row(_config(radius_255), "drill")
    found = PictureFolder(folder, (self.file,), {})
    self.pictures = tiles_lib.Pictures(found, tiles_lib.Tiling(_TILE, _OVERLAP), folder, masks)

  def protected(self, deltas: np.ndarray) -> Any:
    """The clean and the protected picture, from the deltas of its tiles."""
    from udp_jax.stages import tiles as tiles_lib

    return tiles_lib.protected(self.pictures, self.row, self.file, self.grid, deltas)


@functools.cache
def _config(radius_255: float) -> Any:
  """A study whose own radius is another than that of its row."""
  from experiments import _cli

  config = _cli.get_config("eudp", "folder")
  with config.unlocked():
    config.radius_255 = 255.0 if radius_255 < 128 else 16.0
    config.protections.drill = {"method": "random_noise", "radius_255": radius_255}
  return config


def not_finite(generator: np.random.Generator, count: int, folder: Path) -> list[str]:
  """Deltas that hold NaN or infinity somewhere; one line for each that is not refused."""
  from udp_jax.protections import constraints

  said = []
  for number in range(count):
    radius_255 = draw_radius(generator, 1.0)
    bad = generator.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    try:
      if number % 2:
        size = _SIZES[generator.integers(len(_SIZES))]
        clean = draw_levels(generator, (4, *size, 3))
        delta = draw_deltas(generator, clean.shape, radius_255)
        delta.reshape(-1)[generator.integers(delta.size)] = bad
        constraints.saved(clean, delta, radius_255)
      else:
        single = _Single(generator, f"{number:04d}", radius_255, folder)
        delta = draw_deltas(generator, (single.grid.num_tiles, _TILE, _TILE, 3), radius_255)
        delta[..., generator.integers(3)] = bad
        single.protected(delta)
    except UserError:
      continue
    said.append(f"a delta with {bad} is saved")
  return said


_FUNCTIONS = {"sets": sets, "singles": singles, "not finite": not_finite}


class Saver:
  """Tries batches of one kind in a worker process."""

  def __init__(
    self,
    kind: str,
    *,
    seed: int,
    folder: Path,
    memory: Path,
    env: dict[str, str],
    batch: int = BATCH,
  ):
    """Prepares; the first batch starts the worker.

    Args:
      kind: of `KINDS`.
      seed: of the drill.
      folder: for what the worker says.
      memory: for pictures; on a disk in memory, as every one of them is flushed.
      env: of the worker.
      batch: pictures a try.
    """
    self._kind, self._batch, self._worker = kind, batch, None
    words = ("tests.drill.budget", kind, str(seed), str(memory))
    self._start = functools.partial(Worker, words, folder, env)

  def attempt(self, number: int) -> Try:
    """Saves one batch and reads it again."""
    if self._worker is None:
      self._worker = self._start()
    worker = self._worker
    worker.ask({"number": number, "count": self._batch})
    while not (lines := worker.lines()):
      if lines is None:
        code = worker.close()
        self._worker = None
        said = (f"the worker ends with {code}",)
        return Try("budget", self._kind, number, self._batch, 0.0, 0.0, said)
    made = lines[0] | {"failures": tuple(lines[0]["failures"])}
    return Try("budget", self._kind, number, self._batch, **made)

  def close(self) -> None:
    """Ends the worker."""
    if self._worker is not None:
      self._worker.close()
      self._worker = None


def place_for(workdir: Path) -> Path:
  """A folder on a disk in memory if there is one, else in the working folder."""
  if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
    return MEMORY / f"udp-drill-{hashlib.sha256(os.fsencode(workdir)).hexdigest()[:12]}"
  return workdir / "pictures"


def batch(kind: str, seed: int, number: int, count: int, folder: Path) -> list[str]:
  """Saves and reads one batch in an empty folder; one line for each thing that is wrong."""
  generator = np.random.default_rng(ledger.seed_of(seed, "budget", kind, number))
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  try:
    return _FUNCTIONS[kind](generator, count, folder)
  except (RuntimeError, UserError) as error:
    return [f"refused to save what it made itself: {' '.join(str(error).split())}"]


def _work(kind: str, seed: int, folder: Path) -> None:
  """The worker: a batch for each line of its input."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  from udp_jax.stages import tiles as tiles_lib

  # Padded to this many values: a hundred times less work for pictures as small as these.
  tiles_lib._CHUNK = 1 << 11
  for line in sys.stdin:
    request = json.loads(line)
    start = time.monotonic()
    said = batch(kind, seed, request["number"], request["count"], folder / "pictures")
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    made = {"seconds": time.monotonic() - start, "peak_mib": peak, "failures": tuple(said)}
    answers.write(json.dumps(made) + "\n")


if __name__ == "__main__":
  _work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
