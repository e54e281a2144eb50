"""Compares two recorded configs and finds the differences that change results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udp_jax import published
from udp_jax.data import places
from udp_jax.runtime import files

# Where the places are that path fields name as they were given.
PLACES = "places"
# Hashes of what some of these places hold; `studies.settings` compares them.
CONTENTS = "contents"
# Settings of `performance` that change results, and settings that older versions lacked, with the
# values that apply when they are not set.
_CHANGES_RESULTS = {
  "performance.joint_gradients": False,
  "performance.shard_batches": 0,
  "spare_flat": 0.0,
  "protection_model.path": "",
  "data.clean_set": "",
  "purifier_model.path": "",
  "model.timestep_probs": "",
  "model.vae": "",
  "model.tokenizer": "",
  "model.prediction_type": "",
  "pictures.windows": 240,
  "pictures.smallest_window": 112,
  "pictures.learn_up_to": 0,
}


# What `experiments.timesteps` writes.
TIMESTEPS = "timesteps.json"
# The generation of constructor defaults that applies to options missing from a record. Older
# records do not say, and use generation 1.
DEFAULTS = "defaults"
NEWEST_DEFAULTS = 3
# Records of older generations left out the offline perceptual distance, and gave budgets on each
# distance's own scale; now budgets are in units of LPIPS.
_BUDGETS_IN_LPIPS = 3
_WITH_DISTANCES = {"protections": ("glaze",), "purifiers": ("impress",)}
_OFFLINE, _LPIPS = "effnet_lite0_distance", "lpips_vgg"
_Defaults = Mapping[str, Any]
# Configs have these fields now; the defaults are as they were.
_ONE_DRAW = {"num_draws": 1}
_NO_BAND = {"band": "", "band_sigma": 3.0}
_PLAIN = _ONE_DRAW | _NO_BAND
_GAMES: dict[int, _Defaults] = {
  1: _PLAIN | {"train_steps": 30, "perturb_steps": 2, "start": "sign", "learning_rate": 8e-4},
  2: _PLAIN | {"train_steps": 60, "perturb_steps": 4, "start": "zero", "learning_rate": 1e-3},
}
_TEXTUAL_INVERSION: dict[int, _Defaults] = {
  1: {"learning_rate": 5e-4, "clip_norm": 1.0, "flip": False},
  3: {"learning_rate": 2e-3, "clip_norm": 0.0, "flip": True},
}
# (kind, method) -> defaults of fields that records may lack, by the generation that brought them.
_CHANGED_DEFAULTS: dict[tuple[str, str], dict[int, _Defaults]] = {
  ("protections", "udp"): _GAMES,
  ("protections", "eudp"): _GAMES,
  ("protections", "advdm"): {1: _PLAIN},
  ("protections", "mist"): {1: _PLAIN},
  ("protections", "sds"): {1: _PLAIN},
  ("protections", "aspl"): {1: _NO_BAND},
  ("protections", "fsmg"): {1: _NO_BAND},
  ("protections", "glaze"): {1: _NO_BAND},
  ("protections", "photoguard_diffusion"): {1: _NO_BAND},
  ("protections", "photoguard_encoder"): {1: _NO_BAND},
  ("protections", "random_noise"): {1: _NO_BAND},
  ("threats", "textual_inversion"): _TEXTUAL_INVERSION,
  # Adam's epsilon is scaled by the size of the pictures.
  ("purifiers", "impress"): {1: {"scale_epsilon": False}, 3: {"scale_epsilon": True}},
  # The newest, a rate of 0, depends on what is trained: `_of_entry` resolves it.
  ("threats", "dreambooth"): {1: {"learning_rate": 5e-6}, 3: {"learning_rate": 0.0}},
}
# Where a config lists entries by the bare name of a method.
_LISTS = {"protections": "rows", "purifiers": "use_purifiers", "threats": "use_threats"}


def recorded(config: Any) -> dict[str, Any]:
  """Returns a config as manifests and work folders keep it, with the generation of its defaults.

  >>> from ml_collections import ConfigDict
  >>> recorded(ConfigDict({"seed": 0}))
  {'seed': 0, 'defaults': 3}
  """
  made = config.to_dict() | {DEFAULTS: NEWEST_DEFAULTS}
  if path := made.get("model", {}).get("timestep_probs"):
    # A file that is measured again under its name is another setting.
    made["model"]["timestep_probs_sha256"] = _sha256(path)
  return made


def measurement(path: str) -> Path:
  """Returns the file of useful timesteps at a path.

  Args:
    path: the file, the folder that holds it, or the name of a model in the package.

  >>> measurement("tiny_ldm").name
  'timesteps.json'
  """
  packaged = Path(__file__).parents[1] / "models" / path / TIMESTEPS
  place = Path(path).expanduser()
  if not place.exists() and Path(path).name == path and packaged.is_file():
    return packaged
  return place / TIMESTEPS if place.is_dir() else place


def _sha256(path: str) -> str | None:
  place = measurement(path)
  return hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else None


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
  # Intervals are computed from saved values, and no longer by a bootstrap.
  free += (PLACES, CONTENTS, "seeds", "use_purifiers", "use_threats", "evaluation.bootstrap")
  entries = ("protections", "purifiers", "threats")
  old, new = _completed(old), _completed(new)
  nested: tuple[str, ...] = ("data", "prior", "threat", "model", "evaluation", "performance")
  nested += ("protection_model", "purifier_model", "pictures", *entries)
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
  """Fills in the constructor defaults that entries of a record left out and that have changed.

  A record of an unknown generation stays unchanged, and so counts as different.
  """
  generation = config.get(DEFAULTS, 1)
  if not isinstance(generation, int) or not 1 <= generation <= NEWEST_DEFAULTS:
    return config
  completed = config | {DEFAULTS: NEWEST_DEFAULTS}
  for kind, listed in _LISTS.items():
    entries = config.get(kind)
    if isinstance(entries, dict):
      names = [name for name in config.get(listed) or () if (kind, name) in _CHANGED_DEFAULTS]
      bare: dict[str, Any] = {name: {} for name in names}
      entries = bare | entries
      completed[kind] = {
        name: _of_entry(kind, name, entry, generation) for name, entry in entries.items()
      }
  if generation < _BUDGETS_IN_LPIPS:
    for kind, methods in _WITH_DISTANCES.items():
      if isinstance(entries := completed.get(kind), dict):
        old = {name: _on_own_scale(name, entry, methods) for name, entry in entries.items()}
        chosen = completed.get("rows" if kind == "protections" else "use_purifiers") or ()
        bare = {n: _on_own_scale(n, {}, methods) for n in chosen if n in methods and n not in old}
        completed[kind] = old | bare
  return completed


def _of_entry(kind: str, name: str, entry: Any, generation: int) -> Any:
  """Returns an entry with the changed defaults of its method that held in a generation."""
  if not isinstance(entry, dict):
    return entry
  changes = _CHANGED_DEFAULTS.get((kind, entry.get("method", name)), {})
  held = [defaults for since, defaults in sorted(changes.items()) if since <= generation]
  made = {**held[-1], **entry} if held else dict(entry)
  if kind == "threats" and made.get("learning_rate") == 0.0:
    rank, trains_text = made.get("rank", 0), made.get("train_text_encoder", False)
    made["learning_rate"] = published.dreambooth_rate(rank, trains_text)
  return made


def _on_own_scale(name: str, entry: Any, methods: tuple[str, ...]) -> Any:
  """Says in an old entry what it meant: its distance, and that the budget is on its scale."""
  if not isinstance(entry, dict):
    return entry
  if isinstance(parts := entry.get("methods"), list | tuple):  # A chain of purifiers.
    made = [
      _on_own_scale(p.get("name", ""), p, methods) if isinstance(p, dict) else p for p in parts
    ]
    return entry | {"methods": made}
  if entry.get("method", name) not in methods:
    return entry
  entry = {"perceptual": _OFFLINE} | entry
  if entry["perceptual"] in ("", _LPIPS):
    return entry
  return entry | {"perceptual_budget": {"own_scale": entry.get("perceptual_budget")}}


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
