"""Measures which timesteps are useful against a model, and reads the file for `probs="measured"`.

output/timesteps.json   usefulness by timestep, expected ascents, the model's hash, the command
output/timesteps.svg    usefulness against timesteps
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.data import config_changes
from udp_jax.data.config_changes import TIMESTEPS as FILE
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import BadDataError, ConfigError, MissingDataError, OutputError
from udp_jax.metrics import usefulness
from udp_jax.models import galaxies, places
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.ops.schedules import NoiseSchedule
from udp_jax.report import plots
from udp_jax.runtime import files, provenance

FIGURE = "timesteps.svg"
MEASURED = "measured"
# Members (a, b) of `ops.timesteps.schedule_power` whose expected ascent is reported.
POWERS = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (0.5, 0.5), (1.0, 0.5))
_KIND = "usefulness of timesteps"


def fingerprint(path: str) -> str:
  """Returns the SHA-256 of a model's weights and configs; "" for a model without a folder.

  Raises:
    MissingDataError, ConfigError: as `places.find_folder`.
  """
  if path.startswith(places.GALAXIES):
    return hashlib.sha256(galaxies.file_of(path).read_bytes()).hexdigest()
  if not path:
    return ""
  place = places.resolve(path)
  return _fingerprint(
    (place if place.is_file() else places.find_folder(place, "a model")).resolve()
  )


@functools.lru_cache
def _fingerprint(place: Path) -> str:
  digest = hashlib.sha256()
  names = ("config.json", "scheduler_config.json")
  for path in [place] if place.is_file() else sorted(place.rglob("*")):
    if path.suffix in (".safetensors", ".npz") or path.name in names:
      digest.update(path.relative_to(place).as_posix().encode() + b"\0")
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
  return digest.hexdigest()


def describe(
  found: usefulness.Usefulness,
  path: str,
  model: DiffusionModel,
  pictures: ImageSet,
  settings: dict[str, Any],
  unet: Any = None,
) -> dict[str, Any]:
  """Returns the contents of timesteps.json.

  Args:
    found: the measurement.
    path: folder of the model, or a name in the package.
    model: the model.
    pictures: the pictures that were measured.
    settings: "seed", "draws" and all else that decides the numbers.
    unet: config of a pixel model's U-Net (`models.context.Model.unet`); None for other models.
  """
  schedule = model.schedule
  pairs = [usefulness.mean_and_error(column) for column in found.values.T]
  centres = np.round(found.centres).astype(int)
  uniform = found.ascent(timesteps.uniform(schedule.num_steps))
  expected = []
  for a, b in POWERS:
    values = found.ascent(timesteps.schedule_power(schedule, a, b))
    mean, error = usefulness.mean_and_error(values)
    more, its_error = usefulness.mean_and_error(values - uniform)
    expected.append(
      {"a": a, "b": b, "ascent": mean, "se": error, "more": more, "more_se": its_error}
    )
  return {
    "kind": _KIND,
    "format": 1,
    "model": path if path.startswith(places.GALAXIES) else places.named(path),
    "model_sha256": fingerprint(path),
    "schedule_sha256": _schedule_sha256(schedule),
    "unet_sha256": _unet_sha256(unet),
    "image_shape": list(model.image_shape),
    "num_steps": schedule.num_steps,
    "timesteps": found.centres.tolist(),
    "alphas_cumprod": [float(schedule.alphas_cumprod[t]) for t in centres],
    "usefulness": [mean for mean, _ in pairs],
    "se": [error for _, error in pairs],
    "expected": expected,
    "pictures": {"count": len(pictures.images), "sha256": pictures.origin.get("sha256")},
    "settings": settings,
    "command": provenance.command(),
    "commit": provenance.commit() or "not a checkout",
    "versions": provenance.versions(),
  }


def write(folder: Path, record: dict[str, Any]) -> None:
  """Writes both files; earlier ones of ours are replaced.

  Raises:
    OutputError: timesteps.json is there and is no measurement of ours.
  """
  path = folder / FILE
  if path.exists():
    try:
      ours = files.read_json(path).get("kind") == _KIND
    except BadDataError:
      ours = False
    if not ours:
      raise OutputError(f"{path} is there and is no measurement of ours; choose another folder")
  with files.output_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  files.write_bytes(folder / FIGURE, plots.usefulness(record).encode())
  files.write_json(path, record)


def read(
  path: str, model_path: str, model: DiffusionModel | None = None, unet: Any = None
) -> np.ndarray:
  """Returns the distribution (T,) over timesteps that a file's measurement gives.

  Args:
    path: timesteps.json, the folder that holds it, or a name in the package ("tiny_ldm").
    model_path: folder of the model that is used, or a name in the package; "" for one that is
      trained from scratch, which has no hash: its U-Net's config (where the file says it), size
      and noise schedule must be the same.
    model: the model that is used, if it is open.
    unet: config of its U-Net, as for `describe`.

  Raises:
    ConfigError: no file is named, or it was measured on another model.
    MissingDataError, BadDataError: the file is missing, or no measurement.
  """
  command = f"`python -m experiments.timesteps --model={model_path or 'FOLDER'}` writes one"
  if not path:
    raise ConfigError(f'probs="{MEASURED}" needs config.model.timestep_probs, a {FILE}; {command}')
  place = config_changes.measurement(path)
  if not place.is_file():
    raise MissingDataError(f"config.model.timestep_probs: no file {place}; {command}")
  record = files.read_json(place)
  try:
    if record["kind"] != _KIND:
      raise ValueError(record["kind"])
    named, digest = str(record["model"]), str(record["model_sha256"])
    known = {"schedule_sha256": record["schedule_sha256"], "image_shape": record["image_shape"]}
    known["unet_sha256"] = record.get("unet_sha256")  # Earlier versions had none.
    grid, values, num_steps = record["timesteps"], record["usefulness"], record["num_steps"]
    made = timesteps.measured(grid, values, num_steps)
  except (KeyError, TypeError, ValueError) as error:
    raise BadDataError(f"{place} is no measurement of timesteps: {error}; {command}") from error
  refused = f"{place} was measured on another model ({named})"
  if model_path and fingerprint(model_path) != digest:
    raise ConfigError(f"{refused} than {model_path}, by their weights; {command}")
  if model is not None:
    shape, schedule = model.image_shape, model.schedule
    used: dict[str, Any] = {
      "schedule_sha256": _schedule_sha256(schedule),
      "image_shape": list(shape),
    }
    if unet is not None and known["unet_sha256"] is not None:
      used["unet_sha256"] = _unet_sha256(unet)
    for name, value in used.items():
      if known[name] != value:
        raise ConfigError(f"{refused}: its {name} is another one; {command}")
  return made


def _unet_sha256(unet: Any) -> str | None:
  if unet is None:
    return None
  return hashlib.sha256(files.to_json(dataclasses.asdict(unet)).encode()).hexdigest()


def _schedule_sha256(schedule: NoiseSchedule) -> str:
  digest = hashlib.sha256(np.asarray(schedule.alphas_cumprod, "<f4").tobytes())
  digest.update(schedule.prediction_type.encode())
  return digest.hexdigest()
