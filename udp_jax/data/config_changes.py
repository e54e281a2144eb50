"""Compares two recorded configs and finds the differences that change results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udp_jax.data import places
from udp_jax.runtime import files

# Where the places are that path fields name as they were given.
PLACES = "places"
# Settings of `performance` that change results, and settings that older versions lacked, with the
# values that apply when they are not set.
_CHANGES_RESULTS = {
  "performance.joint_gradients": False,
  "performance.shard_batches": 0,
  "spare_flat": 0.0,
  "model.vae": "",
  "model.tokenizer": "",
  "model.prediction_type": "",
}


# The generation of constructor defaults that applies to options missing from a record. Older
# records do not say, and use generation 1.
DEFAULTS = "defaults"
NEWEST_DEFAULTS = 2
_GAMES = ("udp", "eudp")
_DEFAULTS_OF_GAMES: dict[int, dict[str, Any]] = {
  1: {"train_steps": 30, "perturb_steps": 2, "start": "sign", "learning_rate": 8e-4},
  2: {"train_steps": 60, "perturb_steps": 4, "start": "zero", "learning_rate": 1e-3},
}


def recorded(config: Any) -> dict[str, Any]:
  """Returns a config as manifests and work folders keep it, with the generation of its defaults.

  >>> from ml_collections import ConfigDict
  >>> recorded(ConfigDict({"seed": 0}))
  {'seed': 0, 'defaults': 2}
  """
  return config.to_dict() | {DEFAULTS: NEWEST_DEFAULTS}


def changed_from_published(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Returns dotted names of fields that differ between a manifest's config and a run's.

  Fields that do not change results are skipped. For a place, a manifest records only the name.

  Args:
    old: "config" field of a manifest.
    new: config of the run, from `recorded`.

  >>> old, new = ({"seed": 0, "model": {"path": path}} for path in ("sd15", "models/sd15"))
  >>> changed_from_published(old, new)
  []
  """
  return changed(*(places.published({"config": config})["config"] for config in (old, new)))


def names_other_places(config: dict[str, Any], workdir: Path) -> bool:
  """Returns whether a config names other picture or model folders than its work folder records.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   files.write_json(Path(folder) / "config.json", {"model": {"path": "sd15"}})
  ...   names_other_places({"model": {"path": "elsewhere/sd15"}}, Path(folder))
  True
  """
  path = workdir / "config.json"
  if not path.exists():
    return False
  new = json.loads(files.to_json(config))
  new[PLACES] = places.paths_of(new)
  return any(places.is_path(name) for name in changed(files.read_json(path), new))


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Returns dotted names of the fields that differ and change results.

  >>> old = {"seed": 0, "title": "A demo", "threat": {"name": "lora"}}
  >>> changed(old, old | {"title": "Another", "threat": {"name": "full"}})
  ['threat.name']
  """
  free: tuple[str, ...] = ("title", "notice", "rows", "checkpoint", "threat.seeds")
  free += (PLACES, "seeds", "use_purifiers", "use_threats")
  entries = ("protections", "purifiers", "threats")
  old, new = _completed(old), _completed(new)
  nested = ("data", "prior", "threat", "model", "evaluation", "performance", *entries)
  flat_old, flat_new = (_only_results(_flat(config, nested)) for config in (old, new))
  known_old, known_new = (config.get(PLACES) or {} for config in (old, new))

  def differ(name: str) -> bool:
    one, other = flat_old[name], flat_new[name]
    if one == other or not places.is_path(name):
      return bool(one != other)
    # A run started in another current folder recorded where its relative path led.
    return not places.same(known_old.get(name, one), known_new.get(name, other))

  # An entry that only one config has was added or dropped, which does not count as a change.
  common = set(flat_old) & set(flat_new)
  lost = {n for n in set(flat_old) ^ set(flat_new) if n.split(".")[0] not in entries}
  changed = sorted(lost | {name for name in common if differ(name)})
  return [name for name in changed if name not in free]


def _completed(config: dict[str, Any]) -> dict[str, Any]:
  """Fills in the constructor defaults that the UDP and EUDP rows of a record left out.

  A record of an unknown generation stays unchanged, and so counts as different.
  """
  generation = config.get(DEFAULTS, 1)
  if not isinstance(generation, int) or generation not in _DEFAULTS_OF_GAMES:
    return config
  completed = config | {DEFAULTS: NEWEST_DEFAULTS}
  entries = config.get("protections")
  if isinstance(entries, dict):
    # A row may be the bare name of a method.
    bare: dict[str, Any] = {name: {} for name in config.get("rows") or () if name in _GAMES}
    entries = bare | entries
    games = {
      name: _DEFAULTS_OF_GAMES[generation] | entry
      for name, entry in entries.items()
      if isinstance(entry, dict) and entry.get("method", name) in _GAMES
    }
    completed["protections"] = entries | games
  return completed


def _only_results(flat: dict[str, Any]) -> dict[str, Any]:
  """Drops settings of speed; fills in defaults for settings that an older version lacked."""
  kept = {name: value for name, value in flat.items() if not name.startswith("performance.")}
  return kept | {name: flat.get(name, default) for name, default in _CHANGES_RESULTS.items()}


def _flat(config: dict[str, Any], nested: tuple[str, ...]) -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if name in nested and isinstance(value, dict):
      flat |= {f"{name}.{inner}": content for inner, content in value.items()}
    else:
      flat[name] = value
  return flat
