"""The config that a working folder belongs to: one folder, one study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from udp_jax import processes
from udp_jax.data import files, places, work_folder
from udp_jax.data.image_set import ImageSet
from udp_jax.data.verify import check_radius_255
from udp_jax.errors import ConfigError

# Fields that count something, or divide by something, and the least that makes sense.
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


# Beside the fields that name places as they were given: where these are.
_PLACES = "places"
# Settings of `performance` that change results, and others that older versions did not have: what
# they are where they are not set.
_CHANGES_RESULTS = {
  "performance.joint_gradients": False,
  "performance.shard_batches": 0,
  "spare_flat": 0.0,
}


def check_values(config: Any) -> None:
  """Raises ConfigError for a number that no run can work with, before anything is done."""
  for field, least in _AT_LEAST.items():
    value = config
    for part in field.split("."):
      value = value[part] if hasattr(value, "keys") and part in value else least
    if not value >= least:  # NaN is refused too.
      raise ConfigError(f"config.{field} is {value}; it must be at least {least:g}")
  if "radius_255" in config:
    check_radius_255("config.radius_255", config.radius_255)
  if "rows" in config and not (config.rows and config.threat.seeds):
    raise ConfigError("config.rows and config.threat.seeds need at least one entry each")


def check(config: Any, workdir: Path, pictures: ImageSet, *, replace: bool = False) -> None:
  """Writes workdir/config.json, or refuses to mix two different studies in one folder.

  Rows and seeds may be added later, and settings that change only speed may change; those of
  `performance` that change results as well (the joint step, streaming) may not. With `replace`, a
  different study's pictures and checkpoints are removed instead (see `work_folder.clear`).

  Raises:
    OutputError: with `replace`, something there is not ours, or the last copy of a picture.
    ConfigError: what stands there differs in something that changes results, or began with other
      pictures.
  """
  processes.from_main(lambda: _check(config, workdir, pictures, replace), "config")


def _check(config: Any, workdir: Path, pictures: ImageSet, replace: bool) -> None:
  path = workdir / "config.json"
  new = json.loads(files.to_json(config.to_dict())) | {"pictures": pictures.origin["sha256"]}
  new[_PLACES] = places.paths_of(new)
  if path.exists():
    changed = _changed(files.read_json(path), new)
    if changed and replace:
      work_folder.clear(workdir)
    elif changed:
      raise ConfigError(
        f"{workdir} holds a run with another config ({', '.join(changed)} differ): choose another "
        "--workdir, or delete that folder"
      )
  files.write_json(path, new)
  work_folder.mark(workdir)


def changed_from_published(old: Any, new: Any) -> list[str]:
  """Dotted names of the fields that differ between a manifest's config and another's.

  Fields that do not change results are left out. A manifest has of a place its name only.
  """
  return _changed(*(places.published({"config": config})["config"] for config in (old, new)))


def names_other_places(config: Any, workdir: Path) -> bool:
  """Whether a working folder belongs to a config with other folders of pictures or models."""
  path = workdir / "config.json"
  if not path.exists():
    return False
  new = json.loads(files.to_json(config.to_dict()))
  new[_PLACES] = places.paths_of(new)
  return any(places.is_path(name) for name in _changed(files.read_json(path), new))


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Dotted names of the fields that differ and change results."""
  free: tuple[str, ...] = ("title", "notice", "rows", "checkpoint", "threat.seeds")
  free += (_PLACES, "seeds", "use_purifiers", "use_threats")
  entries = ("protections", "purifiers", "threats")
  nested = ("data", "prior", "threat", "model", "evaluation", "performance", *entries)
  flat_old, flat_new = (_only_results(_flat(config, nested)) for config in (old, new))
  known_old, known_new = (config.get(_PLACES) or {} for config in (old, new))

  def differ(name: str) -> bool:
    one, other = flat_old[name], flat_new[name]
    if one == other or not places.is_path(name):
      return bool(one != other)
    # What a run wrote from another current folder meant the place that it wrote beside.
    return not places.same(known_old.get(name, one), known_new.get(name, other))

  # An entry that only one of them describes was added or dropped, which is no change.
  common = set(flat_old) & set(flat_new)
  lost = {n for n in set(flat_old) ^ set(flat_new) if n.split(".")[0] not in entries}
  changed = sorted(lost | {name for name in common if differ(name)})
  return [name for name in changed if name not in free]


def _only_results(flat: dict[str, Any]) -> dict[str, Any]:
  """Without the settings of speed; what an older version did not have was at its default."""
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
