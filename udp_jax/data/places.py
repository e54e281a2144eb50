"""Which folders a run may use together, decided before anything is touched or computed.

Every entry point that reads or writes folders works inside of `use`. One rule for all of them:

* what is written (output folder, work folder, a file such as --json) may not be, hold, or lie in
  another thing that is written, and may not be or hold anything that is read;
* it may not lie in a folder that is read whole, picture by picture, either: the next run would read
  what this one wrote. Beside a file that is read, or in a folder of which files are read by name (a
  model, CIFAR-10's archive), it may lie.

* it may not lie in a folder that another run wrote, or in its work folder: that run could not go
  on. A clean reference is never an output.

Paths are compared as the file system sees them: links, `~`, `.` and slashes at the end make no
difference, here and between runs (`same`). What leaves the machine names no folders (`published`).
Folders that are written are locked (`data.locks`) until the end of the run; a run of
several processes is one run, and process 0 holds its locks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax import processes
from udp_jax.data import files, locks, output, work_folder
from udp_jax.errors import OutputError

_log = logging.getLogger(__name__)

Given = str | os.PathLike | None

# Fields of configs that name what a run reads: folders of pictures, and what is read by name.
_SOURCES = ("data.source", "data.photos", "data.paintings", "prior.source")
_NAMED = ("model.path", "evaluation.weights", "evaluation.clip", "evaluation.face")
# Sources of which files are read by name.
_BY_NAME = ("cifar10", "cifar10-test", "tfds")
_NO_PLACES = frozenset({"", "builtin", "tiny_ldm"})
# Fields of a manifest, beside its config, that may hold a path or several.
_PATHS = ("model", "init_image", "mask", "loras", "embeddings")


class Place(NamedTuple):
  """A place that a run uses.

  Attributes:
    what: the flag or the field that names it.
    path: resolved.
    whole: it is a folder whose pictures are all read; anything that appears in it is input.
  """

  what: str
  path: Path
  whole: bool = False


def resolve(path: str | os.PathLike) -> Path:
  """The path as the file system has it: `~`, `.`, `..`, links and slashes at the end resolved."""
  return Path(os.path.realpath(Path(path).expanduser()))


def work_beside(output_folder: str | os.PathLike) -> Path:
  """The work folder of an output folder where none is given: `<name>.work` beside it.

  Raises:
    OutputError: the folder has no name, as the root has none.
  """
  path = resolve(output_folder)
  if not path.name:
    raise OutputError(f"{path} is no folder to write to; choose another output folder")
  return path.with_name(f"{path.name}.work")


def from_config(config: Any) -> dict[str, Given]:
  """The sources of pictures, models and weights that a config names, by their fields."""
  found: dict[str, Given] = {}
  for field in (*_SOURCES, *_NAMED):
    value = config
    for part in field.split("."):
      value = value[part] if hasattr(value, "keys") and part in value else None
    if isinstance(value, str) and value not in _NO_PLACES:
      found[f"config.{field}"] = value
  return found


@contextlib.contextmanager
def use(
  *,
  pictures: Mapping[str, Given | Iterable[Given]] | None = None,
  named: Mapping[str, Given | Iterable[Given]] | None = None,
  config: Any = None,
  outputs: Mapping[str, Given] | None = None,
  work: Mapping[str, Given] | None = None,
  reports: Mapping[str, Given] | None = None,
  protects: bool = False,
) -> Iterator[dict[str, Path]]:
  """Checks and locks what a run uses; all of the run happens inside.

  Args:
    pictures: sources of pictures by flag (any spec of `data.sources`); several of one flag, or None
      where the flag is not given.
    named: files and folders that are read by name (models, weights, masks' single files).
    config: whose fields name more of both.
    outputs: output folders by flag.
    work: work folders by flag.
    reports: JSON files by flag; "-" is the terminal.
    protects: the run protects pictures: an input that is protected already is worth a warning.

  Yields:
    The resolved paths of `outputs`, `work` and `reports`, by flag.

  Raises:
    OutputError: places that may not be used together, a folder that another run uses, a work folder
      or a report that is not ours.
  """
  read = _read_places(pictures or {}, named or {}, config)
  folders = _written(outputs) + _written(work)
  reported = _written(reports)
  written = folders + reported

  def enter() -> None:
    check(read, written)
    check_runs(_written(outputs), _written(work), reported)
    for place in reported:
      check_report(place)
    held: list[locks.Lock] = []
    try:
      for place in folders:
        if (lock := locks.acquire(place.path)) is not None:
          held.append(lock)
      for place in _written(work):
        work_folder.check(place.path)
      # What is read may have been named twice, by a flag and in the config.
      for path in dict.fromkeys(place.path for place in read if place.whole):
        if (what := output.describe(path)) is not None:
          level = logging.WARNING if protects else logging.INFO
          kind = "warning" if protects else "note"
          _log.log(level, "%s: input is %s: %s", kind, what, path)
    except BaseException:
      for lock in reversed(held):
        locks.release(lock)
      raise
    mine.extend(held)

  mine: list[locks.Lock] = []
  processes.from_main(enter, "use folders")
  try:
    yield {place.what: place.path for place in written}
  finally:
    for lock in reversed(mine):
      locks.release(lock)


def check(read: Iterable[Place], written: Iterable[Place]) -> None:
  """Raises OutputError for places that may not be used together; see the module."""
  written = list(written)
  for number, one in enumerate(written):
    for other in written[number + 1 :]:
      for inner, outer in ((one, other), (other, one)):
        if _is_in(inner.path, outer.path):
          _refuse(inner, outer, "what runs write must not be mixed; choose another folder")
    for source in read:
      if _is_in(source.path, one.path):
        _refuse(source, one, "a run would write over what it reads; choose another folder")
      if source.whole and _is_in(one.path, source.path):
        _refuse(one, source, "the next run would read what this one writes; choose another folder")


def check_runs(
  outputs: Iterable[Place], work: Iterable[Place], reports: Iterable[Place] = ()
) -> None:
  """Raises OutputError for what would be written into a folder of another run, or over a clean one.

  A finished output may be given again, as may a work folder: whose they are is seen later.
  """
  outputs, work = list(outputs), list(work)
  for place in outputs:
    if work_folder.is_ours(place.path):
      raise _into(place, place.path, "is the work folder of a run")
    if (output.read_manifest(place.path) or {}).get("method") == output.CLEAN:
      raise _into(place, place.path, f"is {output.describe(place.path)}")
  for place in work:
    if output.is_written(place.path):
      raise _into(place, place.path, "is a folder that udp_jax wrote pictures to")
  for place in [*outputs, *work, *reports]:
    for folder in place.path.parents:
      if output.is_written(folder):
        raise _into(place, folder, "lies in a folder that udp_jax wrote pictures to")
      if place in reports:
        continue  # Beside the records of a run a report does no harm.
      if work_folder.is_ours(folder):
        raise _into(place, folder, "lies in the work folder of a run")


def _into(place: Place, folder: Path, why: str) -> OutputError:
  where = "" if folder == place.path else f" ({folder})"
  return OutputError(f"{place.what} ({place.path}) {why}{where}; choose another folder")


def canonical(spec: str) -> str:
  """One spelling of a source of `data.sources`, or of another path that a config holds."""
  kind, place = _divided(spec)
  if kind == "tfds":
    name, at, folder = place.partition("@")
    return f"tfds:{name}@{resolve(folder)}" if at else spec
  if spec in _NO_PLACES or not place:
    return spec
  return f"{kind}:{resolve(place)}" if kind in _BY_NAME else str(resolve(place))


def same(one: Any, other: Any) -> bool:
  """Whether two values of a field that names a place name the same one."""
  if isinstance(one, str) and isinstance(other, str):
    return one == other or canonical(one) == canonical(other)
  return bool(one == other)


def is_path(field: str) -> bool:
  """Whether a field of a config ("data.source") names a place."""
  return field in _SOURCES or field in _NAMED


def paths_of(config: Mapping[str, Any]) -> dict[str, str]:
  """The canonical values of the fields of a config, as a dict, that name places."""
  return {field: canonical(value) for field, value in _path_values(config).items()}


def _path_values(config: Mapping[str, Any]) -> dict[str, str]:
  found = {}
  for field in (*_SOURCES, *_NAMED):
    section, name = field.split(".")
    inner = config.get(section)
    if isinstance(inner, Mapping) and isinstance(inner.get(name), str) and inner[name]:
      found[field] = inner[name]
  return found


def published(record: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
  """A manifest's record as others may see it: names of files and folders, not where they are.

  Args:
    record: as `manifest.write_folder` has it; any depth of JSON.
    folder: that it is written to.
  """
  said: dict[str, Any] = json.loads(files.to_json(dict(record)))
  places: list[str] = [] if folder is None else [str(folder)]

  def base(value: Any) -> Any:
    if isinstance(value, list):
      return [base(entry) for entry in value]
    if not isinstance(value, str) or value in _NO_PLACES:
      return value
    kind, place = _divided(value)
    if kind == "tfds":
      place, at, data = place.partition("@")
      places.extend([data] if at else [])
      return f"tfds:{place}"
    places.append(place)
    name = Path(place).name or Path(os.path.realpath(place)).name
    return f"{kind}:{name}" if kind in (*_BY_NAME, "npz") else name

  config = said.get("config")
  if isinstance(config, dict):
    for field, value in _path_values(config).items():
      section, name = field.split(".")
      config[section][name] = base(value)
  for field in _PATHS:
    if field in said:
      said[field] = base(said[field])
  origin = said.get("origin")
  if isinstance(origin, dict) and isinstance(origin.get("source"), str):
    word, space, place = origin["source"].partition(" ")
    if space and ("/" in place or os.sep in place or word in ("folder", "npz")):
      origin["source"] = f"{word} {base(place)}"
  return _without(said, _parents(places))


def _divided(spec: str) -> tuple[str, str]:
  """The kind of a source and its place; "" for a folder, and for paths without a kind."""
  kind, colon, place = spec.partition(":")
  if colon and kind in (*_BY_NAME, "folder", "npz"):
    return ("" if kind in ("folder", "npz") else kind), place
  return "", spec


def _parents(paths: Iterable[str]) -> re.Pattern[str] | None:
  """What finds the folders in which places are, the home and the current folder, in texts."""
  found = {str(Path.home()), os.path.realpath(Path.home()), os.getcwd()}
  for path in paths:
    spelled = Path(path).expanduser()
    found |= {str(Path(path).parent), str(spelled.parent), str(spelled.absolute().parent)}
    found.add(os.path.realpath(spelled.parent))
    found.add(str(Path(os.path.realpath(spelled)).parent))
  found -= {"", ".", "/"}
  if not found:
    return None
  longest = sorted(found, key=len, reverse=True)
  return re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, longest))})(?:/|(?![\w.-]))")


def _without(value: Any, parents: re.Pattern[str] | None) -> Any:
  if parents is None:
    return value
  if isinstance(value, str):
    return parents.sub("", value)
  if isinstance(value, list):
    return [_without(entry, parents) for entry in value]
  if isinstance(value, dict):
    return {name: _without(entry, parents) for name, entry in value.items()}
  return value


def check_report(place: Place) -> None:
  """Raises OutputError for a file that is there and is no JSON report of ours."""
  path = place.path
  if not path.exists() or files.is_device(path):
    return
  if path.is_dir():
    raise OutputError(f"{place.what}={path} is a folder; name a file")
  try:
    content = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError):
    content = None
  if not _is_report(content):
    raise OutputError(
      f"{place.what}={path} is there and is no report of ours; choose another file, or move it away"
    )


def _is_report(content: Any) -> bool:
  """Whether JSON is what `experiments.verify` or `experiments.evaluate` writes."""
  if not isinstance(content, dict) or not content:
    return False
  if {"ok", "radius_255", "checked", "files"} <= content.keys():
    return True
  kinds = ({"fd", "precision", "recall", "mmd"}, {"psnr", "ssim", "rms_ratio", "max_abs_255"})
  return all(
    isinstance(group, dict) and any(kind <= group.keys() for kind in kinds)
    for group in content.values()
  )


def _refuse(inner: Place, outer: Place, why: str) -> None:
  same = os.path.realpath(inner.path) == os.path.realpath(outer.path)
  how = "is the same as" if same else "lies in"
  raise OutputError(f"{inner.what} ({inner.path}) {how} {outer.what} ({outer.path}): {why}")


def _is_in(inner: Path, outer: Path) -> bool:
  """Whether a path is another or lies in it, by the file system where they are there."""
  for path in (inner, *inner.parents):
    if path == outer:
      return True
    with contextlib.suppress(OSError):  # Names that differ by case, or a folder mounted twice.
      if os.path.samefile(path, outer):
        return True
  return False


def _read_places(
  pictures: Mapping[str, Given | Iterable[Given]],
  named: Mapping[str, Given | Iterable[Given]],
  config: Any,
) -> list[Place]:
  configured = {} if config is None else from_config(config)
  by_name = {f"config.{field}" for field in _NAMED}
  found = []
  for what, specs in [*pictures.items(), *configured.items()]:
    for spec in _several(specs):
      found += _source(what, spec) if what not in by_name else [Place(what, resolve(spec))]
  for what, specs in named.items():
    found += [Place(what, resolve(spec)) for spec in _several(specs) if spec not in _NO_PLACES]
  return found


def _several(specs: Given | Iterable[Given]) -> list[str]:
  if specs is None or isinstance(specs, str | os.PathLike):
    specs = [specs]
  return [os.fspath(spec) for spec in specs if spec]


def _source(what: str, spec: str) -> list[Place]:
  """The place of a source of `data.sources`; none for pictures that come with a package."""
  kind, colon, place = spec.partition(":")
  if spec in _NO_PLACES:
    return []
  if colon and kind == "tfds":
    place = place.partition("@")[2]
  elif not (colon and kind in (*_BY_NAME, "folder", "npz")):
    kind, place = "", spec
  if not place:
    return []
  path = resolve(place)
  return [Place(what, path, whole=kind not in _BY_NAME and path.is_dir())]


def _written(given: Mapping[str, Given] | None) -> list[Place]:
  return [
    # The link to a pipe (/dev/stdout) leads to no path.
    Place(what, Path(path) if files.is_device(path) else resolve(path))
    for what, path in (given or {}).items()
    if path and path != "-"
  ]
