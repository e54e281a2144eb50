"""Makes the evidence of a study in pieces of a few minutes, which may run on different machines.

  python -m launch.pieces --do=pack --pictures=pictures.zip --config=cifar10_evidence
  python -m launch.pieces --do=protect --row=udp ...      a GPU; controls of noise: any machine
  python -m launch.pieces --do=victim --row=udp --seed=0 ...                              a GPU
  python -m launch.pieces --do=collect ...    python -m launch.pieces --do=judge ...      a CPU

`launch/gpu_evidence.sh` starts them, and says what travels. Draws depend on the config alone, so
the pieces are those of `experiments.eudp` with the same config.

pack     all pictures of config.data, lossless, in a zip of at most 25 MiB
protect  the perturbations of one row: OUT/protect-ROW.zip and .json
victim   trains a model on the pictures of one row, samples it and measures its losses:
         OUT/victim-ROW-SEED.zip and .json. It ends where it starts: if the time would not do,
         nothing is written that looks finished, and the message says how many steps would fit
collect  checks the pieces in the folders of --pieces and lays WORKDIR/study, as a run leaves it
judge    measures the samples there, and writes the report

The .json of a piece is written last. It has the commit, the device, seconds, and hashes of all that
went in and out. Exit code 75: the time would not do; else as `experiments.eudp`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import _cli
from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.runtime import files, processes

MOST_BYTES = 25 << 20
# Files that come back from a lent machine.
MOST_BYTES_BACK = 16 << 20
UNFINISHED = 75
# Pictures along each side of a mosaic: together they compress better, and in fewer files.
_SIDE = 10
# Seconds that a piece needs after its rounds or steps: sampling, losses and writing.
_AFTER_S = {"protect": 20, "victim": 75}
# What is saved of a perturbation: its 8-bit levels, moved to be positive.
_ZERO = 128
_STARTED = time.monotonic()

_DO = flags.DEFINE_enum("do", None, ["pack", "protect", "victim", "collect", "judge"], "The piece.")
_PICTURES = flags.DEFINE_string("pictures", None, "The zip of `pack`.")
_PROTECTED = flags.DEFINE_multi_string("protected", [], "A zip of `protect`; repeatable.")
_PIECES = flags.DEFINE_multi_string("pieces", [], "For `collect`: a folder of pieces; repeatable.")
_OUT = flags.DEFINE_string("out", None, "Folder for what a piece brings back.")
_ROW = flags.DEFINE_string("row", None, "A row of the config.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the victim, one of config.threat.seeds.")
_SECONDS = flags.DEFINE_float("seconds", 500.0, "Time for the piece, from its start on.")
_CONFIG = _cli.define_config("eudp")
_WORKDIR = _cli.workdir_flag()


def write_pictures(path: Path, images: np.ndarray, record: Mapping[str, Any]) -> None:
  """Writes uint8 (N, H, W, 3) pictures as lossless mosaics in a zip, with a record of them.

  Raises:
    RuntimeError: what is read back differs, which is a bug of the encoder.
  """
  from PIL import Image

  count, height, width, _ = images.shape
  whole = np.zeros((-(-count // _SIDE**2) * _SIDE**2, *images.shape[1:]), np.uint8)
  whole[:count] = images
  whole = whole.reshape(-1, _SIDE, _SIDE, height, width, 3).swapaxes(2, 3)
  mosaics = whole.reshape(-1, _SIDE * height, _SIDE * width, 3)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for number, mosaic in enumerate(mosaics):
      encoded = io.BytesIO()
      Image.fromarray(mosaic).save(encoded, "WEBP", lossless=True, quality=100, method=4)
      archive.writestr(_entry(f"{number:04d}.webp"), encoded.getvalue())
    described = {**record, "shape": images.shape}
    archive.writestr(_entry("record.json"), files.to_json(described))
  files.write_bytes(path, buffer.getvalue())
  if not np.array_equal(read_pictures(path)[0], images):
    raise RuntimeError(f"{path}: the pictures read back differ from those written")


def _entry(name: str) -> zipfile.ZipInfo:
  return zipfile.ZipInfo(name)  # Without a time, so that equal pictures are equal files.


def read_pictures(path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the pictures, uint8 (N, H, W, 3), and the record of `write_pictures`.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: it is damaged, or not of `write_pictures`.
  """
  from PIL import Image

  if not Path(path).is_file():
    raise MissingDataError(f"{path}: no such file; make it by the piece that writes it")
  try:
    with zipfile.ZipFile(path) as archive:
      record = json.loads(archive.read("record.json"))
      names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
      mosaics = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    count, height, width, channels = record.pop("shape")
    tiles = np.stack(mosaics).reshape(-1, _SIDE, height, _SIDE, width, channels).swapaxes(2, 3)
    return tiles.reshape(-1, height, width, channels)[:count], record
  except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
    raise BadDataError(f"{path}: not a whole zip of pictures ({error})") from error


class Opened(NamedTuple):
  """A study over packed pictures.

  Attributes:
    study: its config reads the packed pictures.
    clean: pictures to protect.
    holdout: held-out pictures.
    identity: what all pieces of one study have in common: hashes of pictures and settings.
  """

  study: Any
  clean: Any
  holdout: Any
  identity: dict[str, str]


def pack(config: Any, path: Path) -> dict[str, Any]:
  """Writes all pictures of a config's source, with names and labels.

  Raises:
    BadDataError: the zip is larger than 25 MiB; it is left for a look.
  """
  from udp_jax.studies import build, settings

  # Nothing is held out of a fraction of 0: every piece divides the packed pictures itself.
  pictures, _ = build.load_data(settings.frozen(config, {"data.holdout": 0.0}))
  record = {"names": pictures.names, "origin": pictures.origin["source"]}
  record["classes"] = pictures.origin["classes"]
  record["labels"] = None if pictures.labels is None else pictures.labels.tolist()
  write_pictures(path, pictures.images, record)
  size = path.stat().st_size
  if size > MOST_BYTES:
    raise BadDataError(
      f"{path}: {size / 2**20:.1f} MiB, at most 25: give fewer pictures or classes"
    )
  return {"pictures": len(pictures.images), "mib": round(size / 2**20, 2)}


def opened(config: Any, pictures: Path, workdir: Path) -> Opened:
  """Opens a study over packed pictures in workdir/study; writes none of them there.

  Raises:
    ConfigError: the folder belongs to another study.
  """
  from udp_jax.data import config_changes, image_set
  from udp_jax.studies import build, settings

  images, record = read_pictures(pictures)
  arrays: dict[str, Any] = {"images": images, "names": np.array(record["names"])}
  if record["labels"] is not None:
    arrays |= {"labels": np.array(record["labels"]), "classes": np.array(record["classes"])}
  workdir.mkdir(parents=True, exist_ok=True)
  np.savez(workdir / "pictures.npz", **arrays)
  source = {"data.source": "npz:", "data.classes": (), "data.limit": 0}
  alike = config_changes.recorded(settings.frozen(config, source))
  for field in ("rows", "checkpoint"):  # Neither changes the result of a piece, nor do the seeds.
    alike.pop(field)
  alike["threat"].pop("seeds")
  identity = {
    "pictures": image_set.pixels_sha256(images),
    "settings": hashlib.sha256(files.to_json(alike).encode()).hexdigest(),
  }
  source["data.source"] = f"npz:{workdir / 'pictures.npz'}"
  study = build.open_study(settings.frozen(config, source), workdir / "study", progress=False)
  clean, holdout = build.load_data(study.config)
  build.check_sizes(study.config, clean, study.model.model)
  settings.check(study.config, study.workdir, clean)
  return Opened(study, clean, holdout, identity)


class Target(NamedTuple):
  """Where a piece goes, and by when.

  Attributes:
    folder: for its zip and its record.
    until: time of `time.monotonic` by which it has to be written.
  """

  folder: Path
  until: float


class Protected(NamedTuple):
  """The pictures of a `protect` piece.

  Attributes:
    row: name of the row.
    images: uint8 (N, H, W, 3).
    record: the record of its zip.
  """

  row: str
  images: np.ndarray
  record: dict[str, Any]


def read_protected(opened: Opened, path: str | Path) -> Protected:
  """Returns the protected pictures of a piece.

  Raises:
    BadDataError: the piece is of another study, or breaks its budget.
  """
  from udp_jax.data import image_set
  from udp_jax.studies import rows

  levels, record = read_pictures(path)
  _check_identity(opened, record, path)
  row, change = record["row"], levels.astype(np.int16) - _ZERO
  if np.abs(change).max() > rows.row_radius_255(opened.study.config, row):
    raise BadDataError(f"{path}: {np.abs(change).max()} levels, more than the budget of {row}")
  images = (opened.clean.images + change).astype(np.uint8)
  if image_set.pixels_sha256(images) != record["protected"]:
    raise BadDataError(f"{path}: the pictures of {row} are not those that the piece made")
  return Protected(row, images, record)


def lay_protected(opened: Opened, protected: Protected) -> None:
  """Writes the protected pictures of a piece into the study, as its own run does."""
  from udp_jax.data import manifest

  folder = opened.study.workdir / "protected" / protected.row
  if not manifest.is_complete(folder):
    more = {"origin": opened.clean.origin, "piece": protected.record}
    manifest.write_folder(
      folder,
      protected.images,
      opened.clean.names,
      clean=opened.clean.images,
      record=opened.study.row(protected.row).record | more,
    )


def _check_identity(opened: Opened, record: Mapping[str, Any], path: str | Path) -> None:
  for what, known in opened.identity.items():
    if record.get(what) != known:
      raise BadDataError(f"{path}: a piece with other {what}; all pieces need the same")


def protect(
  opened: Opened, row: str, target: Target, given: Mapping[str, Protected]
) -> dict[str, Any]:
  """Makes the perturbations of one row and writes the piece.

  Args:
    opened: the study.
    row: name of the row.
    target: where the piece goes.
    given: pictures of other rows, by row, of which this one may imitate one.

  Raises:
    MissingDataError: the row imitates another one that is not there yet.
  """
  from udp_jax.data import image_set
  from udp_jax.studies import build, rows

  study = opened.study
  settings = rows.settings(study.config, row)
  if settings.radius_255 >= _ZERO:
    raise ConfigError(f"{row}: at most {_ZERO - 1} levels fit into a piece")
  if settings.imitates is not None:
    if settings.imitates not in given:
      raise MissingDataError(f"{row} imitates {settings.imitates}: give its piece by --protected")
    lay_protected(opened, given[settings.imitates])
  log = study.workdir / "stages" / f"protect_{row}" / "metrics.jsonl"
  with in_time(log, settings.num_rounds, target.until - _AFTER_S["protect"]):
    images = build.protect_row(study, row, opened.clean)
  levels = (images.astype(np.int16) - opened.clean.images + _ZERO).astype(np.uint8)
  described = {"row": row, "protected": image_set.pixels_sha256(images), **opened.identity}
  path = target.folder / f"protect-{row}.zip"
  write_pictures(path, levels, described)
  return _finish(path, {"piece": "protect", **described, "rounds": settings.num_rounds}, log)


def victim(
  opened: Opened, row: str, seed: int, target: Target, given: Mapping[str, Protected]
) -> dict[str, Any]:
  """Trains on one row, samples, measures the losses, and writes the piece.

  Args:
    opened: the study.
    row: name of the row, "clean" for unprotected pictures.
    seed: one of config.threat.seeds.
    target: where the piece goes.
    given: protected pictures by row.

  Raises:
    MissingDataError: the row's pictures are not given.
  """
  from udp_jax.data import image_set
  from udp_jax.data.marks import CLEAN
  from udp_jax.metrics import denoising
  from udp_jax.stages import sample
  from udp_jax.studies import build

  study, config = opened.study, opened.study.config
  if seed not in config.threat.seeds:
    raise ConfigError(f"--seed={seed} is none of config.threat.seeds, {tuple(config.threat.seeds)}")
  if row != CLEAN and row not in given:
    raise MissingDataError(f"no pictures of {row}: give its piece by --protected")
  images = opened.clean.images if row == CLEAN else given[row].images
  folder = study.workdir / "threats" / row / f"seed{seed}"
  # As in `studies.training_sets`: every row has the same draws.
  every, label = config.checkpoint.every_steps, f"train {row} seed {seed}"
  run = study.run(f"threat/{seed}", folder, label, checkpoint_every=every)
  threat, steps = build.build_trainer(study), config.threat.options.train_steps
  with in_time(folder / "metrics.jsonl", steps, target.until - _AFTER_S["victim"]):
    params = build.train_model(study, images, threat, run)
    trained = time.monotonic()
    samples = sample.sample(
      threat.sample,
      params,
      folder / "samples",
      run.drawing("sample").at(folder, f"sample {row} seed {seed}"),
      num_samples=config.num_samples,
      asked=sample.Asked(record={"method": "samples", "row": row, "seed": seed}),
    )
    loss, limit = denoising.denoising_loss(study.model.model), config.evaluation.loss_images
    losses = {
      "loss_training_set": loss(params, images[:limit]),
      "loss_clean_holdout": loss(params, opened.holdout.images[:limit]),
    }
  described = {"row": row, "seed": seed, **opened.identity}
  described["training_set"] = image_set.pixels_sha256(images)
  path = target.folder / f"victim-{row}-{seed}.zip"
  write_pictures(path, samples, described | {"samples": image_set.pixels_sha256(samples)})
  more = {"losses": losses, "steps": steps, "seconds_after": time.monotonic() - trained}
  return _finish(path, {"piece": "victim", **described, **more}, folder / "metrics.jsonl")


def _finish(path: Path, record: dict[str, Any], log: Path) -> dict[str, Any]:
  """Writes the record of a piece beside its zip, last; returns what to print."""
  from udp_jax.runtime import metrics_log, provenance

  size = path.stat().st_size
  if size > MOST_BYTES_BACK:
    raise BadDataError(f"{path}: {size / 2**20:.1f} MiB, at most 16 come back from a machine")
  record |= {
    "zip": hashlib.sha256(path.read_bytes()).hexdigest(),
    "seconds": time.monotonic() - _STARTED,
    "commit": provenance.commit(),
    "hardware": provenance.hardware(),
    "versions": provenance.versions(),
    "curve": metrics_log.read_metrics(log),
  }
  files.write_json(path.with_suffix(".json"), record)
  return {"file": path.name, "mib": round(size / 2**20, 2), "seconds": round(record["seconds"], 1)}


@contextlib.contextmanager
def in_time(log: Path, total: int, until: float) -> Iterator[None]:
  """Ends the process with code 75 as soon as its rounds or steps cannot be done in time.

  Args:
    log: metrics.jsonl of the loop, with the position and seconds of each call.
    total: position at which the loop is done.
    until: time of `time.monotonic` at which the loop has to be done.
  """
  done = threading.Event()

  def watch() -> None:
    while not done.wait(0.5):
      text = too_long(_positions(log), total, until - time.monotonic())
      if text and not done.is_set():
        print(f"unfinished: {text}", flush=True)
        processes.exit_now(UNFINISHED)

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    done.set()
    watcher.join()


def _positions(log: Path) -> list[tuple[int, float]]:
  with contextlib.suppress(OSError, ValueError, KeyError):  # The last line may be half written.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["position"], line["seconds"]) for line in lines]
  return []


def too_long(calls: Sequence[tuple[int, float]], total: int, left: float) -> str:
  """Returns why a loop cannot be done in time; "" if it can, or if it is too early to tell.

  Args:
    calls: (position, seconds) of each call so far; the first one also compiles.
    total: position at which the loop is done.
    left: seconds that are left for the loop.
  """
  position = calls[-1][0] if calls else 0
  if position >= total:
    return ""
  if left <= 0:
    return f"the time is over, at {position} of {total}"
  if len(calls) < 3:
    return ""
  each = sum(seconds for _, seconds in calls[1:]) / (position - calls[0][0])
  fit = position + int(left / each)
  return "" if fit >= total else f"{each:.4g} s each: {fit} of {total} would fit"


def collect(opened: Opened, folders: Sequence[str]) -> dict[str, Any]:
  """Checks pieces and lays them into the study; returns what is there and what is missing.

  Raises:
    BadDataError: a piece is damaged, of another study, or trained on other pictures.
    MissingDataError: there is no piece.
  """
  from udp_jax.data import image_set, verify
  from udp_jax.data.marks import CLEAN
  from udp_jax.studies import build

  records = dict(_records(folders))
  if not records:
    raise MissingDataError(f"no pieces in {', '.join(folders)}")
  study = opened.study
  build.write_pictures(opened.clean, study.workdir / "clean")
  build.write_pictures(opened.holdout, study.workdir / "holdout")
  digests = {CLEAN: image_set.pixels_sha256(opened.clean.images)}
  for path, record in records.items():
    _check_identity(opened, record, path)
    if record["piece"] == "protect":
      row = record["row"]
      lay_protected(opened, read_protected(opened, path))
      digests[row] = record["protected"]
      _lay_curve(study.workdir / "stages" / f"protect_{row}", record)
      report = verify.verify(
        study.workdir / "clean", study.workdir / "protected" / row, study.row(row).radius_255
      )
      if not report.ok:
        raise BadDataError(f"{path}: {len(report.failures)} pictures of {row} break their budget")
  found: dict[str, list[int]] = {}
  for path, record in records.items():
    if record["piece"] == "victim":
      if record["training_set"] != digests.get(record["row"]):
        raise BadDataError(f"{path}: trained on other pictures than the piece of {record['row']}")
      _lay_victim(study, path, record)
      found.setdefault(record["row"], []).append(record["seed"])
  wanted = [(row, seed) for row in study.config.rows for seed in study.config.threat.seeds]
  missing = [f"{row} {seed}" for row, seed in wanted if seed not in found.get(row, ())]
  commits = sorted({record["commit"] or "unknown" for record in records.values()})
  devices = sorted({record["hardware"]["devices"] for record in records.values()})
  return {"pieces": len(records), "missing": missing, "commits": commits, "devices": devices}


def _records(folders: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
  for folder in folders:
    for path in sorted(Path(folder).glob("*.json")):
      record = files.read_json(path)
      if "piece" not in record:
        continue
      archive = path.with_suffix(".zip")
      if not archive.is_file() or hashlib.sha256(archive.read_bytes()).hexdigest() != record["zip"]:
        raise BadDataError(f"{archive}: missing, or not the file of {path.name}")
      yield archive, record


def _lay_victim(study: Any, path: Path, record: Mapping[str, Any]) -> None:
  from udp_jax.data import manifest

  folder = study.workdir / "threats" / record["row"] / f"seed{record['seed']}"
  samples, _ = read_pictures(path)
  if not manifest.is_complete(folder / "samples"):
    names = [f"{i:05d}" for i in range(len(samples))]
    said = {"method": "samples", "row": record["row"], "seed": record["seed"]}
    manifest.write_folder(folder / "samples", samples, names, record=said)
  _lay_curve(folder, record)
  files.write_json(folder / "piece.json", {k: v for k, v in record.items() if k != "curve"})


def _lay_curve(folder: Path, record: Mapping[str, Any]) -> None:
  lines = "".join(f"{json.dumps(line)}\n" for line in record["curve"])
  files.write_bytes(folder / "metrics.jsonl", lines.encode())


def judge(opened: Opened) -> str:
  """Measures the samples of all victims in the study, writes its report; returns the table.

  Rows without a victim are left out, and so are seeds that not every other row has.

  Raises:
    MissingDataError: no seed has a victim of every row that has any.
  """
  from udp_jax.data import manifest
  from udp_jax.data.marks import CLEAN
  from udp_jax.models import features
  from udp_jax.report import html, text
  from udp_jax.stages import evaluate
  from udp_jax.studies import rows, settings, training_sets_report

  study, config = opened.study, opened.study.config
  place = lambda row, seed: study.workdir / "threats" / row / f"seed{seed}"
  there = lambda row, seed: (place(row, seed) / "piece.json").is_file()
  known = [row for row in config.rows if any(there(row, seed) for seed in config.threat.seeds)]
  seeds = [seed for seed in config.threat.seeds if all(there(row, seed) for row in known)]
  if not known or not seeds:
    raise MissingDataError("no seed has a victim of every row: collect more pieces")
  extractor = features.load(config.evaluation.features, weights=config.evaluation.weights or None)
  judged = evaluate.Judge(
    config,
    opened.clean.images,
    opened.holdout.images,
    study.model.model,
    extractor,
    progress=study.progress,
  )
  table = []
  for row in known:
    images = opened.clean.images
    if row != CLEAN:
      images = manifest.read_folder(study.workdir / "protected" / row)[0].images
    measured = []
    for seed in seeds:
      folder = place(row, seed)
      if not evaluate.is_judged(folder / "evaluation.json"):
        samples = manifest.read_folder(folder / "samples")[0].images
        losses = files.read_json(folder / "piece.json")["losses"]
        radius_255 = rows.row_radius_255(config, row)
        numbers = judged.without_model(images, samples, losses, f"{row} {seed}", radius_255)
        files.write_json(folder / "evaluation.json", numbers)
      measured.append(files.read_json(folder / "evaluation.json"))
    table.append({"name": row, "metrics": evaluate.spread(measured)})
  shown = settings.frozen(config, {"rows": tuple(known), "threat.seeds": tuple(seeds)})
  report, assets = training_sets_report.build(
    shown, table, study.workdir, study.model.model, extractor.label
  )
  text.write_json(study.workdir / "report.json", report)
  html.write_report(study.workdir / "report.html", report, assets)
  return text.format_table(report)


def main(argv: Sequence[str]) -> int:
  """Makes the piece that the flags ask for; returns the exit code."""
  del argv
  piece = _needed("do", _DO)
  from udp_jax.studies import settings

  config = settings.frozen(_needed("config", _CONFIG))
  pictures = Path(_needed("pictures", _PICTURES)).absolute()
  if piece == "pack":
    print(json.dumps(pack(config, pictures)))
    return 0
  made = opened(config, pictures, Path(_needed("workdir", _WORKDIR)).absolute())
  if piece == "judge":
    print(judge(made))
    print(f"\nreport: {made.study.workdir / 'report.html'}")
  elif piece == "collect":
    print(json.dumps(collect(made, _PIECES.value), indent=2))
  else:
    row = _needed("row", _ROW)
    target = Target(Path(_needed("out", _OUT)).absolute(), _STARTED + _SECONDS.value)
    if row not in config.rows:
      raise ConfigError(f"--row={row}: the config has {', '.join(config.rows)}")
    read = [read_protected(made, path) for path in _PROTECTED.value]
    given = {one.row: one for one in read}
    if piece == "protect":
      done = protect(made, row, target, given)
    else:
      done = victim(made, row, _SEED.value, target, given)
    print(json.dumps(done))
  return 0


def _needed(name: str, flag: Any) -> Any:
  if flag.value is None:
    raise ConfigError(f"--{name} is needed (see --help)")
  return flag.value


if __name__ == "__main__":
  _cli.run(main, several=False)
