"""What is promised of a row: how far its pictures may change, and which model they are safe from.

One place says both: files, manifests, checks, measurements and reports ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udp_jax import run_config
from udp_jax.errors import ConfigError
from udp_jax.models import places
from udp_jax.ops import visibility
from udp_jax.protections.lookup import CONTROLS

CLEAN = "clean"
# Channels of a pixel model's widest level up to which it is called small.
_SMALL = 64


def row_radius_255(config: Any, row: str) -> float:
  """The budget of a row in 8-bit levels: what its saved files, manifest and numbers promise.

  It is the row's own `radius_255`, else that of the row that it imitates (`of`), else the config's.
  The promise about a file is in whole levels: 7.65 allows 7. Everything that saves, records,
  checks or reports a row asks here.

  Raises:
    ConfigError: not a number from 1 to 255 (a file changes by whole levels), or rows that imitate
      each other in a circle.
  """
  seen: list[str] = []
  asked = row
  while True:
    if asked in seen:
      raise ConfigError(f"config.protections: {' imitates '.join([*seen, asked])}")
    seen.append(asked)
    own = config.protections.get(asked, {})
    if own.get("radius_255") is not None:
      field, value = f"config.protections.{asked}.radius_255", own["radius_255"]
      break
    if not own.get("of"):
      field, value = "config.radius_255", config.radius_255
      break
    asked = own["of"]
  run_config.check_radius_255(field, value)
  return float(value)


def spared(config: Any) -> float:
  """Strength of `ops.visibility.spared_limit` in a config, [0, 1]; 0 is off.

  Raises:
    ConfigError: it is not in [0, 1].
  """
  strength = config.get("spare_flat", 0.0)
  if not 0 <= strength <= 1:
    raise ConfigError(f"spare_flat is {strength}: it must be from 0 (off) to 1")
  return float(strength)


def record(config: Any, row: str) -> dict[str, Any]:
  """What a manifest says of a row: "radius_255", "against", and "spare_flat" where it is on.

  Raises:
    ConfigError, MissingDataError, BadDataError: see `row_radius_255`, `spared` and `against`.
  """
  said: dict[str, Any] = {
    "radius_255": row_radius_255(config, row),
    "against": against(config, row),
  }
  if strength := spared(config):
    said["spare_flat"] = {
      "strength": strength,
      "window": visibility.WINDOW,
      "full_contrast_255": visibility.FULL_CONTRAST_255,
    }
  return said


def uses_model(config: Any, row: str) -> bool:
  """Whether a row attacks a model or trains one: all but noise, and what imitates such a row."""
  return _method(config, row) not in CONTROLS


def against(config: Any, row: str) -> dict[str, str]:
  """Which model a row is protected against and what that is worth, for its manifest.

  Args:
    config: of a study or a matrix.
    row: of `config.protections`, or a method.

  Returns:
    "kind" ("none", "pixel", "ddpm", "tiny_ldm" or "stable_diffusion"), "model" (a name, not a
    path) and "statement", a sentence for people.

  Raises:
    ConfigError, MissingDataError, BadDataError: see `models.places.kind_of`.
  """
  if config.protections.get(row, {}).get("method", row) in CONTROLS:
    said = "no model: noise within the budget, what protections are measured against; evidence for "
    return {"kind": "none", "model": "", "statement": f"{said}any model: none"}
  path = config.model.get("path", "")
  if not path:
    unet = config.model.get("unet", {})
    small = max(unet.get("block_out_channels", (0,))) <= _SMALL
    name = f"a {'small ' if small else ''}pixel DDPM trained on these pictures"
    worth = "not a model that anyone would fine-tune; evidence for Stable Diffusion: none"
    return {"kind": "pixel", "model": name, "statement": f"{name}: {worth}"}
  if path in places.PACKAGED:
    said = (
      f"{path}, the small latent diffusion model of this package: not a model that anyone would "
    )
    said += "fine-tune; evidence for Stable Diffusion: none"
    return {"kind": "tiny_ldm", "model": path, "statement": said}
  name = Path(path).expanduser().resolve().name
  latent = places.kind_of(path) == places.LATENT
  kind, what = ("stable_diffusion", "Stable Diffusion") if latent else ("ddpm", "the pixel DDPM")
  said = f"{what} as it is in the folder {name}: this model; other models untested"
  return {"kind": kind, "model": name, "statement": said}


def statements(config: Any, rows: Sequence[str]) -> list[str]:
  """What `against` says of the rows that use a model, each sentence once."""
  found = [against(config, row) for row in rows if row != CLEAN]
  return list(dict.fromkeys(said["statement"] for said in found if said["kind"] != "none"))


def _method(config: Any, row: str) -> str:
  """The method of a row, or of the row that it imitates."""
  seen: set[str] = set()
  while row not in seen:
    seen.add(row)
    settings = config.protections.get(row, {})
    if not settings.get("of"):
      return str(settings.get("method", row))
    row = settings["of"]
  raise ConfigError(f"config.protections.{row} imitates itself")
