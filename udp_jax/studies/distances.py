"""Replaces the perceptual distance "auto" in options and configs by the one that it is here.

Records must name what was measured and optimised with: a folder that one distance has started is
not continued by another, after a package has come or gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from udp_jax import registry
from udp_jax.models import perceptual

_FIELD = "perceptual"


def in_options(kind: str, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of a method with its distance named; those of other methods unchanged.

  Args:
    kind: "protections", "purifiers" or "threats".
    method: a module of the package; an unknown one has no distance.
    options: options as configs spell them; for the purifier `chain`, those of its methods too.

  >>> in_options("purifiers", "impress", {"perceptual": "stlpips_vgg"})
  {'perceptual': 'stlpips_vgg'}
  >>> in_options("purifiers", "jpeg", {})
  {}
  """
  made = dict(options)
  if method not in registry.available(f"udp_jax.{kind}"):
    return made
  if kind == "purifiers" and method == "chain":
    parts = made.get("methods") or ()
    made["methods"] = tuple(
      in_options(kind, part.get("name", ""), part) if isinstance(part, Mapping) else part
      for part in parts
    )
    return made
  field = registry.fields(registry.constructor(f"udp_jax.{kind}", method)).get(_FIELD)
  if field is not None:
    asked = made.get(_FIELD, field.default)
    made[_FIELD] = perceptual.resolve(asked) if isinstance(asked, str) else asked
  return made


def record(options: Mapping[str, Any]) -> dict[str, str]:
  """Returns what a purifier's record says of budgets; records of when they had other units lack it.

  >>> record({"perceptual": "lpips_vgg"}), record({"quality": 75})
  ({'budgets': 'in units of LPIPS (VGG16)'}, {})
  """
  parts = [options, *(p for p in options.get("methods") or () if isinstance(p, Mapping))]
  used = any(_FIELD in part for part in parts)
  return {"budgets": "in units of LPIPS (VGG16)"} if used else {}


def in_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config, as nested dictionaries, with every distance named.

  Rows and purifiers that are bare names of methods get entries of their own.

  >>> in_config({"evaluation": {"perceptual": "lpips_alex"}})
  {'evaluation': {'perceptual': 'lpips_alex'}}
  """
  made = dict(config)
  evaluation = made.get("evaluation")
  if isinstance(evaluation, Mapping) and _FIELD in evaluation:
    made["evaluation"] = {**evaluation, _FIELD: perceptual.resolve(evaluation[_FIELD])}
  for kind, chosen in (("protections", "rows"), ("purifiers", "use_purifiers")):
    if not isinstance(made.get(kind), Mapping):
      continue
    entries = dict(made[kind])
    for name in dict.fromkeys((*entries, *(made.get(chosen) or ()))):
      entry = entries.get(name, {})
      if isinstance(entry, Mapping):
        found = in_options(kind, entry.get("method", name), entry)
        if found != entry:
          entries[name] = found
    made[kind] = entries
  return made
