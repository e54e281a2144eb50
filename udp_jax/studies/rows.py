"""Rows of a study: a method with its options, its label, its budget and the model it attacks.

Files, manifests, checks, measurements and reports all take the budget of a row, and the model that
the row protects against, from this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax import protections, registry
from udp_jax.data import config_changes, hub_names
from udp_jax.data.budget import check_radius_255
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError
from udp_jax.models import galaxies, pipeline, places, prompts
from udp_jax.models.context import Model
from udp_jax.ops import visibility
from udp_jax.protections.lookup import CONTROLS
from udp_jax.report import names
from udp_jax.stages.records import Row
from udp_jax.studies import distances, usefulness

_NOISES = {"uniform": "Uniform noise", "sign": "Sign noise, full strength"}
_LABELS = {CLEAN: "Clean", "random_noise": "Random noise", "sign_noise": "Sign noise"}
# Methods that tables of studies too label as `report.names` does; others go by their own names.
_LABELLED = ("advdm", "eudp", "udp")
# What the label of a row in a band ends with.
_BANDS = {"gaussian": ", low-pass", "dct": ", band", "pyramid": ", pyramid"}
# Labels of rows that imitate another row, by method.
_IMITATIONS = {"matched_noise": "matched noise", "shuffled_delta": "shuffled"}


# A pixel model is called small if its widest level has at most this many channels.
_SMALL = 64


def row_radius_255(config: Any, row: str) -> float:
  """Returns the budget of a row in 8-bit levels, which its files, manifest and metrics keep.

  It is the row's own `radius_255`, else that of the row that it imitates (`of`), else the config's.
  A file changes by whole levels, so a budget of 7.65 allows 7. All code that saves, records, checks
  or reports a row calls this function.

  Raises:
    ConfigError: the budget is not a number from 1 to 255, or rows imitate each other in a circle.
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
  check_radius_255(field, value)
  return float(value)


def spared(config: Any) -> float:
  """Returns the strength of `ops.visibility.spared_limit` in a config, in [0, 1]; 0 is off.

  Raises:
    ConfigError: the strength is not in [0, 1].
  """
  strength = config.get("spare_flat", 0.0)
  if not 0 <= strength <= 1:
    raise ConfigError(f"spare_flat is {strength}: it must be from 0 (off) to 1")
  return float(strength)


def record(config: Any, row: str) -> dict[str, Any]:
  """Returns a row's manifest entries: "radius_255", "against", and those that only some rows have.

  These are "spare_flat"; "l2_radius_255", an L2 budget of delta (of the method's own radius, before
  it is rounded to 8 bits); and "surrogate_pictures", the clean pictures that a surrogate trains on.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `row_radius_255`, `spared` and `against`.
  """
  said: dict[str, Any] = {
    "radius_255": row_radius_255(config, row),
    "against": against(config, row),
  }
  own = config.protections.get(row, {})
  if own.get("l2_radius"):
    said["l2_radius_255"] = 255.0 * own["l2_radius"]
  method = own.get("method", row)
  if method in protections.available():
    options = registry.fields(registry.constructor("udp_jax.protections", method))
    if "clean_set" in options:
      source = own.get("clean_set") or config.data.get("clean_set")
      said["surrogate_pictures"] = (
        f"clean set {Path(source).name}" if source else "the protected pictures before protection"
      )
  if strength := spared(config):
    said["spare_flat"] = {
      "strength": strength,
      "window": visibility.WINDOW,
      "full_contrast_255": visibility.FULL_CONTRAST_255,
    }
  return said


def uses_model(config: Any, row: str) -> bool:
  """Whether a row, or the row that it imitates, attacks or trains a model; noise does neither."""
  return not is_control(config, _origin(config, row))


def against(config: Any, row: str) -> dict[str, str]:
  """Returns the model that a row protects against and how much that is worth, for its manifest.

  Args:
    config: settings of a study or a matrix.
    row: an entry of `config.protections`, or a method.

  Returns:
    "kind" ("none", "pixel", "ddpm", "tiny_ldm", "galaxies" or "stable_diffusion"), "model" (a name,
    not a path) and "statement", a sentence for people.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `models.places.kind_of`.
  """
  if is_control(config, row):
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
  if path.startswith(places.GALAXIES):
    said = f"{galaxies.LABEL}, score models that were not trained here: not pictures of people's "
    said += "making; evidence for Stable Diffusion: none"
    return {"kind": "galaxies", "model": galaxies.LABEL, "statement": said}
  name = places.named(path)
  latent = places.kind_of(path) == places.LATENT
  kind, what = ("stable_diffusion", "Stable Diffusion") if latent else ("ddpm", "the pixel DDPM")
  where = f"in the {'file' if places.resolve(path).is_file() else 'folder'} {name}"
  if hub_names.is_pinned(path):
    where = f"on the Hugging Face Hub as {name}"
  said = f"{what} as it is {where}: this model; other models untested"
  return {"kind": kind, "model": name, "statement": said}


def statements(config: Any, rows: Sequence[str]) -> list[str]:
  """Returns the statements of `against` for the rows that use a model, each sentence once."""
  found = [against(config, row) for row in rows if row != CLEAN]
  return list(dict.fromkeys(said["statement"] for said in found if said["kind"] != "none"))


def _origin(config: Any, row: str) -> str:
  """Returns the row that a row imitates in the end; a row that imitates none is its own."""
  seen: set[str] = set()
  while row not in seen:
    seen.add(row)
    imitated = config.protections.get(row, {}).get("of")
    if not imitated:
      return row
    row = imitated
  raise ConfigError(f"config.protections.{row} imitates itself")


def is_control(config: Any, name: str) -> bool:
  """Whether a row exists only so that others can be compared with it: clean pictures, or noise."""
  return name == CLEAN or config.protections.get(name, {}).get("method", name) in CONTROLS


def label(config: Any, name: str, *, full: bool = False) -> str:
  """Returns the label of a row in tables: "EUDP, matched noise" for eudp_matched_noise.

  Args:
    config: settings of a study or a matrix.
    name: an entry of `config.protections`, or a method.
    full: whether every method has its label of `report.names`, noise says which noise, and
      mist_adaptive is "Mist, adaptive", as in tables of a matrix. A band is named too, for
      mist or mist_low "Mist, low-pass".
  """
  known = names.METHODS[name] if name in _LABELLED else _LABELS.get(name)
  if name == CLEAN or (known and not full):
    return str(known)
  row = settings(config, name)
  method, otherwise = row.method, known or name.replace("_", " ")
  if row.imitates is not None and method in _IMITATIONS:
    return f"{label(config, row.imitates, full=full)}, {_IMITATIONS[method]}"
  band = _BANDS.get(row.options.get("band", ""), "") if full else ""
  if full and method == "random_noise":
    return _NOISES.get(row.options.get("distribution", "uniform"), otherwise) + band
  if band and name.removeprefix(method) in ("", "_low", "_band", "_pyramid"):
    return names.method_label(method) + band
  if full and name == method:
    return names.METHODS.get(method, otherwise)
  if full and name.endswith("_adaptive") and method.startswith(name.removesuffix("_adaptive")):
    return f"{names.method_label(method)}, adaptive"
  return otherwise


def naming(config: Any, name: str) -> dict[str, Any]:
  """Returns what a report says about a row beside its numbers."""
  own = None if name == CLEAN else row_radius_255(config, name)
  return {"label": label(config, name), "control": is_control(config, name), "radius_255": own}


def row(config: Any, name: str, model: Model | None = None) -> Row:
  """Returns a row with the record for its manifest, for stages that write files.

  Args:
    config: settings of a study.
    name: an entry of `config.protections`, or a method.
    model: the attacked model, whose tokenizer turns prompts into token ids; None reads the
      tokenizer of `config.model.path`.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `settings` and `record`.
  """
  found = settings(config, name, model)
  recorded = config_changes.recorded(config)
  said = {"method": found.method, "row": name, "config": recorded, "seed": config.seed}
  return found._replace(record=said | record(config, name))


def settings(config: Any, name: str, model: Model | None = None) -> Row:
  """Returns a row without a record. From disk it reads nothing but the tokenizer, for prompts.

  Args:
    config: settings of a study.
    name: an entry of `config.protections`, or a method.
    model: the attacked model, or None, as for `row`.

  Raises:
    ConfigError: neither `config.protections` nor `udp_jax.protections` knows the row, or its budget
      cannot be used.
  """
  if name not in config.protections and name not in protections.available():
    known = ", ".join(sorted({*config.protections, *protections.available()}))
    raise ConfigError(f"unknown method or row {name!r}; known: {known}")
  options = dict(config.protections.get(name, {}))
  method = options.pop("method", name)
  rounds = options.pop("num_rounds", config.num_rounds)
  imitates = options.pop("of", None)
  options.pop("needs_clean_set", None)  # `settings.check_clean_sets` reads it.
  accepted = registry.fields(registry.constructor("udp_jax.protections", method))
  radius_255 = row_radius_255(config, name)
  if "radius" in accepted:
    options["radius_255"] = radius_255
  if "step_size" in accepted and "step_size" not in options:
    options.setdefault("step_size_255", config.step_size_255)
  if "decay_steps" in accepted:
    options.setdefault("decay_steps", rounds)
  # Without a model, from the record of it in the config: reports write every option.
  uncond_ids = config.model.get("uncond_ids") if model is None else model.uncond_ids
  if "uncond_ids" in accepted and uncond_ids:
    options.setdefault("uncond_ids", tuple(uncond_ids))
  for prompt in [option for option in options if option.endswith("_prompt")]:
    if (ids := f"{prompt.removesuffix('_prompt')}_ids") in accepted:
      options[ids] = _token_ids(config, model, options.pop(prompt))
  if "clean_set" in accepted and config.get("data", {}).get("clean_set"):
    options.setdefault("clean_set", config.data.clean_set)
  if "joint_gradients" in accepted and config.performance.get("joint_gradients"):
    options.setdefault("joint_gradients", True)
  options = distances.in_options("protections", method, options)
  found = Row(name, method, options, rounds, radius_255, imitates, spared(config))
  return found._replace(probs=_measured(config, name, options.get("probs"), model))


def _measured(config: Any, name: str, asked: Any, model: Model | None) -> np.ndarray | None:
  """Returns the measured distribution over timesteps of a row that asks for it, else None."""
  if not isinstance(asked, str):
    return None
  if asked != usefulness.MEASURED:
    raise ConfigError(
      f'config.protections.{name}.probs is {asked!r}; it may be "{usefulness.MEASURED}"'
    )
  functions, unet = (None, None) if model is None else (model.model, model.unet)
  path = config.model.path
  return usefulness.read(config.model.get("timestep_probs", ""), path, functions, unet)


def _token_ids(config: Any, model: Model | None, prompt: str) -> tuple[int, ...]:
  if model is None or model.tokenizer is None:
    return prompts.token_ids(config.model.path, prompt, pipeline.Choices.of(config.model))
  return tuple(model.tokenizer([prompt])[0].tolist())
