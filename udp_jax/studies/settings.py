"""The config that a working folder belongs to: one folder holds one study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from udp_jax.data import clearing, config_changes, places
from udp_jax.data.budget import check_radius_255
from udp_jax.data.config_changes import PLACES
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import hub
from udp_jax.models import places as models
from udp_jax.runtime import files, processes
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.studies import distances

# The least sensible value of fields that are counts or divisors.
_AT_LEAST = {
  "step_size_255": 0.0,
  "num_rounds": 1,
  "global_batch_size": 1,
  "num_samples": 5,
  "data.image_size": 0,
  "data.limit": 0,
  "data.holdout": 0,
  "model.num_train_timesteps": 1,
  "threat.options.train_steps": 1,
  "threat.options.sample_steps": 1,
  "evaluation.loss_images": 1,
  "checkpoint.every_rounds": 1,
  "checkpoint.every_steps": 1,
  "performance.steps_per_call": 1,
  "performance.sample_batch_size": 1,
}


def frozen(config: Any, changes: Mapping[str, Any] | None = None) -> FrozenConfigDict:
  """Returns a read-only copy of a config, in which the perceptual distance "auto" is a named one.

  Args:
    config: a `ConfigDict`, frozen or not.
    changes: new values by dotted name ("data.holdout"); a field that does not exist is added to
      its section.

  >>> from ml_collections import ConfigDict
  >>> frozen(ConfigDict({"data": {"limit": 0}}), {"data.limit": 8}).data.limit
  8
  """
  made = config.to_dict()
  for name, value in (changes or {}).items():
    *sections, field = name.split(".")
    section = made
    for part in sections:
      section = section.setdefault(part, {})
    section[field] = value
  return FrozenConfigDict(distances.in_config(made))


def pinned(config: Any) -> dict[str, str]:
  """Returns the changes for `frozen` that give models of the Hugging Face Hub their commits.

  Models that the cache lacks are fetched.

  Raises:
    MissingDataError, ConfigError, BadDataError: as `models.places.resolve`.

  >>> from ml_collections import ConfigDict
  >>> pinned(ConfigDict({"model": {"path": "tiny_ldm"}}))
  {}
  """
  model = config.model
  found = {
    "model.path": models.pinned(model.path),
    "model.vae": hub.pinned(model.get("vae") or ""),
    "model.tokenizer": hub.pinned(model.get("tokenizer") or "", hub.TOKENIZER),
  }
  made = {n: v for n, v in found.items() if v != (model.get(n.removeprefix("model.")) or "")}
  for other in ("protection_model", "purifier_model"):
    path = config.get(other, {}).get("path") or ""
    if models.pinned(path) != path:
      made[f"{other}.path"] = models.pinned(path)
  return made


def check_values(config: Any) -> None:
  """Raises ConfigError, before any work is done, for a number that no run can use."""
  check_least(config, _AT_LEAST)
  if "radius_255" in config:
    check_radius_255("config.radius_255", config.radius_255)
  if "rows" in config and not (config.rows and config.threat.seeds):
    raise ConfigError("config.rows and config.threat.seeds need at least one entry each")


def check_least(config: Any, table: Mapping[str, float]) -> None:
  """Raises ConfigError for a field of `table` (by dotted name) that is below its least value."""
  for field, least in table.items():
    value = config
    for part in field.split("."):
      value = value[part] if hasattr(value, "keys") and part in value else least
    if not value >= least:  # Refuses NaN too.
      raise ConfigError(f"config.{field} is {value}; it must be at least {least:g}")


def check(config: Any, workdir: Path, pictures: ImageSet, *, replace: bool = False) -> None:
  """Writes workdir/config.json, or refuses to mix two different studies in one folder.

  Rows and seeds may be added later, and settings that change only speed may change. Settings in
  `performance` that also change results (the joint step, streaming) may not. With `replace`, the
  pictures and checkpoints of a different study are removed (see `clearing.clear`).

  Raises:
    OutputError: with `replace`, the folder holds foreign files, or the last copy of a picture.
    ConfigError: the folder's config differs in a setting that changes results, or its pictures
      differ.
  """
  processes.from_main(lambda: _check(config, workdir, pictures, replace), "config")


def _check(config: Any, workdir: Path, pictures: ImageSet, replace: bool) -> None:
  new = json.loads(files.to_json(config_changes.recorded(config)))
  new["pictures"] = pictures.origin["sha256"]
  new[PLACES] = places.paths_of(new)
  workdir_lib.claim(
    workdir / workdir_lib.CONFIG,
    new,
    lambda old: config_changes.changed(old, new),
    clear=clearing.clear if replace else None,
  )
