"""The config that a working folder belongs to: one folder holds one study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from udp_jax.data import clearing, config_changes, places, sources
from udp_jax.data.budget import check_radius_255
from udp_jax.data.config_changes import CONTENTS, PLACES
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import hub
from udp_jax.models import places as models
from udp_jax.runtime import files, processes
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.studies import distances, usefulness

# Side in pixels at which a clean set is hashed beside pictures of any sizes.
_ANY_SIZE = 256
_APART = "give pictures apart from the protected ones"
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
  check_clean_sets(config, config.get("rows", ()))


def check_clean_sets(config: Any, rows: Sequence[str]) -> None:
  """Raises ConfigError for rows without the clean set that they need, or with the protected one.

  A clean set that is `data.source` itself would train on the pictures that are to be protected.
  """
  data = config.get("data", {})
  common = data.get("clean_set", "")
  for name in rows:
    row = config.get("protections", {}).get(name, {})
    if row.get("needs_clean_set") and not (row.get("clean_set") or common):
      raise ConfigError(
        f"config.data.clean_set is missing: {name} trains on further pictures of the subject that "
        f"are not protected; give their folder, or leave {name} out of the rows"
      )
  fields = {f"protections.{n}.clean_set": r.get("clean_set") for n, r in _protections(config)}
  for field, source in ({"data.clean_set": common} | fields).items():
    if source and places.same(source, data.get("source", "")):
      raise ConfigError(f"config.{field} is config.data.source: {_APART}")


def _protections(config: Any) -> list[tuple[str, Any]]:
  return [(n, r) for n, r in config.get("protections", {}).items() if hasattr(r, "get")]


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
    ConfigError: the folder's config differs in a setting that changes results, its pictures or
      the contents of `protection_model`, `purifier_model`, a purifier's autoencoder or
      `data.clean_set` differ, or the clean set is the pictures.
  """
  processes.from_main(lambda: _check(config, workdir, pictures, replace), "config")


def _check(config: Any, workdir: Path, pictures: ImageSet, replace: bool) -> None:
  new = json.loads(files.to_json(config_changes.recorded(config)))
  new["pictures"] = pictures.origin["sha256"]
  new[PLACES] = places.paths_of(new)
  new[CONTENTS] = contents = _contents(config, pictures)

  def changed(old: dict[str, Any]) -> list[str]:
    # Earlier versions recorded no contents.
    was = old.get(CONTENTS, {})
    replaced = [
      f"contents of {n}" for n, digest in contents.items() if was.get(n, digest) != digest
    ]
    return [*config_changes.changed(old, new), *replaced]

  workdir_lib.claim(
    workdir / workdir_lib.CONFIG, new, changed, clear=clearing.clear if replace else None
  )


def _contents(config: Any, pictures: ImageSet) -> dict[str, str]:
  """Returns hashes of the models and pictures that a config names beside its own, by field.

  Raises:
    ConfigError: the clean set is the pictures that are protected.
  """
  found = {}
  for section in ("protection_model", "purifier_model"):
    if path := config.get(section, {}).get("path"):
      found[f"{section}.path"] = usefulness.fingerprint(path)
  for name in config.get("use_purifiers", ()):
    if path := config.get("purifiers", {}).get(name, {}).get("autoencoder"):
      found[f"purifiers.{name}.autoencoder"] = usefulness.fingerprint(path)
  if source := config.data.get("clean_set"):
    # At the size of the pictures, so that a copy of them has their hash; those of a folder of any
    # sizes are not at hand.
    size = int(pictures.images.shape[1]) if len(pictures.images) else _ANY_SIZE
    apart = sources.load(source, image_size=size)
    if apart.origin["sha256"] == pictures.origin["sha256"]:
      raise ConfigError(f"config.data.clean_set holds the pictures of config.data.source: {_APART}")
    found["data.clean_set"] = apart.origin["sha256"]
  return found
