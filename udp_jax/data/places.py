"""Decides which folders a run may use together, before anything is touched or computed.

Every entry point that reads or writes folders works inside `use`. The same rules hold for all:

* A written path (output folder, work folder, a file such as --json) may not equal, contain or lie
  in another written path, and may not equal or contain anything that is read.
* It may not lie in a folder that is read whole, picture by picture, because the next run would read
  what this one wrote. It may lie beside a file that is read, or in a folder whose files are read by
  name (a model, CIFAR-10's archive).

* It may not lie in a folder that another run wrote, or in that run's work folder, because that run
  could not resume. A clean reference is never an output.

Paths are compared as the file system sees them: links, `~`, `.` and trailing slashes make no
difference, within a run and between runs (`same`). Published records name no folders (`published`).
Written folders are locked (`runtime.locks`) until the run ends; a run of several processes counts
as one run, and process 0 holds its locks.
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

from udp_jax.data import hub_names, marks
from udp_jax.errors import OutputError
from udp_jax.runtime import files, locks, processes, workdir

_log = logging.getLogger(__name__)

Given = str | os.PathLike | None

# Config fields that name a run's inputs: folders of pictures, and files that are read by name.
_SOURCES = ("data.source", "data.clean_set", "data.photos", "data.paintings", "prior.source")
_NAMED = (
  *("model.path", "model.vae", "model.tokenizer", "model.timestep_probs"),
  *("protection_model.path", "purifier_model.path"),
  *("evaluation.weights", "evaluation.clip", "evaluation.face"),
)
# Sources whose files are read by name.
_BY_NAME = ("cifar10", "cifar10-test", "tfds")
_KINDS = (*_BY_NAME, "folder", "npz", "windows")
_NO_PLACES = frozenset({"", "builtin", "sface", "tiny_ldm"})
# What starts the names of models that are files of an installed package (`models.galaxies`).
_PACKAGED = "galaxygrad:"
# Manifest fields outside its config that may hold one or more paths.
_PATHS = (
  *("model", "vae", "tokenizer", "purifier_model"),
  *("init_image", "mask", "loras", "embeddings"),
)
# Options of methods that are paths, in a record's "options" and in a config's purifiers.
_OPTION_PATHS = ("autoencoder", "weights", "perceptual_weights")


class Place(NamedTuple):
  """A path that a run uses.

  Attributes:
    what: the flag or field that names it.
    path: resolved path.
    whole: whether it is a folder whose pictures are all read, so that new files become input.
  """

  what: str
  path: Path
  whole: bool = False


def resolve(path: str | os.PathLike) -> Path:
  """Resolves `~`, `.`, `..`, links and trailing slashes in a path.

  >>> resolve("/tmp/../etc/") == resolve("/etc")
  True
  """
  return Path(os.path.realpath(Path(path).expanduser()))


def work_beside(output_folder: str | os.PathLike) -> Path:
  """Returns the default work folder of an output folder: `<name>.work` beside it.

  Raises:
    OutputError: the folder has no name, like the root.

  >>> work_beside("/data/out").name
  'out.work'
  """
  path = resolve(output_folder)
  if not path.name:
    raise OutputError(f"{path} is no folder to write to; choose another output folder")
  return path.with_name(f"{path.name}.work")


def from_config(config: Any) -> dict[str, Given]:
  """Returns the sources of pictures, models and weights that a config names, by field.

  >>> from_config({"data": {"source": "photos"}, "model": {"path": "tiny_ldm"}})
  {'config.data.source': 'photos'}
  """
  found: dict[str, Given] = {}
  for field in (*_SOURCES, *_NAMED):
    value = config
    for part in field.split("."):
      value = value[part] if hasattr(value, "keys") and part in value else None
    if isinstance(value, str) and not _is_no_place(value):
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
  """Checks and locks the paths of a run; the whole run happens inside this context.

  Args:
    pictures: picture sources by flag (any spec of `data.sources`); one, several, or None if the
      flag is not given.
    named: files and folders that are read by name (models, weights, single mask files).
    config: a config whose fields name more inputs of both kinds.
    outputs: output folders by flag.
    work: work folders by flag.
    reports: JSON files by flag; "-" is the terminal.
    protects: whether the run protects pictures, so that already protected input gets a warning.

  Yields:
    The resolved paths of `outputs`, `work` and `reports`, by flag.

  Raises:
    OutputError: paths may not be used together, another run uses a folder, or a work folder or
      report is not ours.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   with use(pictures={"--input": f"{place}/in"}, outputs={"--output": f"{place}/out"}) as used:
  ...     sorted(used)
  ['--output']
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
        workdir.check(place.path)
      # A flag and the config may name the same folder.
      for path in dict.fromkeys(place.path for place in read if place.whole):
        if (what := marks.describe(path)) is not None:
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
  """Raises OutputError if paths may not be used together, by the rules of this module.

  >>> check([Place("--input", Path("/in"), whole=True)], [Place("--output", Path("/out"))])
  """
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
  """Raises OutputError if a run would write into another run's folder or over a clean reference.

  A finished output or a work folder may be given again; later checks find out whose it is.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   check_runs([Place("--output", Path(place) / "out")], [])
  """
  outputs, work = list(outputs), list(work)
  for place in outputs:
    if workdir.is_ours(place.path):
      raise _into(place, place.path, "is the work folder of a run")
    if (marks.read_manifest(place.path) or {}).get("method") == marks.CLEAN:
      raise _into(place, place.path, f"is {marks.describe(place.path)}")
  for place in work:
    if marks.is_written(place.path):
      raise _into(place, place.path, "is a folder that udp_jax wrote pictures to")
  for place in [*outputs, *work, *reports]:
    for folder in place.path.parents:
      if marks.is_written(folder):
        raise _into(place, folder, "lies in a folder that udp_jax wrote pictures to")
      if place in reports:
        continue  # A report beside a run's records does no harm.
      if workdir.is_ours(folder):
        raise _into(place, folder, "lies in the work folder of a run")


def _into(place: Place, folder: Path, why: str) -> OutputError:
  where = "" if folder == place.path else f" ({folder})"
  return OutputError(f"{place.what} ({place.path}) {why}{where}; choose another folder")


def canonical(spec: str) -> str:
  """Returns a unique spelling of a `data.sources` source or of another path in a config.

  >>> canonical("folder:/data/./in/"), canonical("builtin")
  ('/data/in', 'builtin')
  """
  kind, place = _divided(spec)
  if kind == "tfds":
    name, at, folder = place.partition("@")
    return f"tfds:{name}@{resolve(folder)}" if at else spec
  if _is_no_place(spec) or not place:
    return spec
  return f"{kind}:{resolve(place)}" if kind else str(resolve(place))


def same(one: Any, other: Any) -> bool:
  """Returns whether two values of a path field name the same place.

  >>> same("/data/in/", "folder:/data/in")
  True
  """
  if isinstance(one, str) and isinstance(other, str):
    return one == other or canonical(one) == canonical(other)
  return bool(one == other)


def is_path(field: str) -> bool:
  """Returns whether a config field ("data.source") names a place.

  >>> is_path("data.source"), is_path("data.image_size")
  (True, False)
  """
  return field in _SOURCES or field in _NAMED


def paths_of(config: Mapping[str, Any]) -> dict[str, str]:
  """Returns the canonical values of the path fields of a config (a dict).

  >>> paths_of({"model": {"path": "/models/sd15/"}})
  {'model.path': '/models/sd15'}
  """
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
  """Returns a manifest's record for publication, with names of files and folders but no paths.

  Args:
    record: JSON of any depth, as for `manifest.write_folder`.
    folder: the folder that the record is written to.

  >>> published({"method": "udp", "config": {"model": {"path": "/home/me/sd15"}}})["config"]
  {'model': {'path': 'sd15'}}
  >>> published({"options": {"autoencoder": "/home/me/taef2", "num_passes": 1}})["options"]
  {'autoencoder': 'taef2', 'num_passes': 1}
  """
  said: dict[str, Any] = json.loads(files.to_json(dict(record)))
  places: list[str] = [] if folder is None else [str(folder)]

  def base(value: Any) -> Any:
    if isinstance(value, list):
      return [base(entry) for entry in value]
    if not isinstance(value, str) or _is_no_place(value):
      return value
    kind, place = _divided(value)
    if kind == "tfds":
      place, at, data = place.partition("@")
      places.extend([data] if at else [])
      return f"tfds:{place}"
    places.append(place)
    name = Path(place).name or Path(os.path.realpath(place)).name
    return f"{kind}:{name}" if kind else name

  def named(options: Any) -> Any:
    if not isinstance(options, Mapping):
      return options
    return {k: base(v) if k in _OPTION_PATHS and v else v for k, v in options.items()}

  config = said.get("config")
  if isinstance(config, dict):
    names = {field: base(value) for field, value in _path_values(config).items()}
    said["config"] = _with(config, names)
    if isinstance(entries := said["config"].get("purifiers"), dict):
      said["config"]["purifiers"] = {name: named(entry) for name, entry in entries.items()}
  if "options" in said:
    said["options"] = named(said["options"])
  for field in _PATHS:
    if field in said:
      said[field] = base(said[field])
  origin = said.get("origin")
  if isinstance(origin, dict) and isinstance(origin.get("source"), str):
    word, space, place = origin["source"].partition(" ")
    if space and ("/" in place or os.sep in place or word in ("folder", "npz")):
      origin["source"] = f"{word} {base(place)}"
  return _without(said, _parents(places))


def _with(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Copies a config with new values for some fields ("section.name"), in the same order."""
  changed = {
    section: {**inner} if isinstance(inner, Mapping) else inner for section, inner in config.items()
  }
  for field, value in changes.items():
    section, name = field.split(".")
    changed[section] = {**changed[section], name: value}
  return changed


def _is_no_place(value: str) -> bool:
  packaged = value.startswith(_PACKAGED) and "@" not in value
  return packaged or value in _NO_PLACES or hub_names.is_pinned(value)


def _divided(spec: str) -> tuple[str, str]:
  """Splits a source into kind and place; the kind is "" for folders and plain paths."""
  kind, colon, place = spec.partition(":")
  if colon and kind in _KINDS:
    return ("" if kind in ("folder", "npz") else kind), place
  return "", spec


def _parents(paths: Iterable[str]) -> re.Pattern[str] | None:
  """Returns a pattern that finds the parents of `paths`, the home and the current folder."""
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
  """Raises OutputError if a file exists and is not a JSON report of ours.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   check_report(Place("--json", Path(place) / "report.json"))
  """
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
  """Returns whether JSON content comes from `experiments.verify` or `experiments.evaluate`."""
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
  """Returns whether a path equals another or lies in it, by the file system if both exist."""
  for path in (inner, *inner.parents):
    if path == outer:
      return True
    with contextlib.suppress(OSError):  # For names that differ by case, or a double mount.
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
      found += _source(what, spec) if what not in by_name else _by_name(what, spec)
  for what, specs in named.items():
    for spec in _several(specs):
      found += _by_name(what, spec)
  return found


def _by_name(what: str, spec: str) -> list[Place]:
  """Returns the place of what is read by name; [] if it comes with a package or from the Hub."""
  here = not _is_no_place(spec) and hub_names.parse(spec) is None
  return [Place(what, resolve(spec))] if here else []


def _several(specs: Given | Iterable[Given]) -> list[str]:
  if specs is None or isinstance(specs, str | os.PathLike):
    specs = [specs]
  return [os.fspath(spec) for spec in specs if spec]


def _source(what: str, spec: str) -> list[Place]:
  """Returns the place of a `data.sources` source; [] for pictures that come with a package."""
  kind, colon, place = spec.partition(":")
  if _is_no_place(spec):
    return []
  if colon and kind == "tfds":
    place = place.partition("@")[2]
  elif not (colon and kind in _KINDS):
    kind, place = "", spec
  if not place:
    return []
  path = resolve(place)
  return [Place(what, path, whole=kind not in _BY_NAME and path.is_dir())]


def _written(given: Mapping[str, Given] | None) -> list[Place]:
  return [
    # Do not resolve the link to a pipe (/dev/stdout): it leads to no path.
    Place(what, Path(path) if files.is_device(path) else resolve(path))
    for what, path in (given or {}).items()
    if path and path != "-"
  ]
