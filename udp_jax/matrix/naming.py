"""What rows are called in tables, and which row each one is read against."""

from __future__ import annotations

from typing import Any, NamedTuple

from udp_jax.matrix.plan import CONTROL, Plan
from udp_jax.protections import CONTROLS
from udp_jax.report.build import label
from udp_jax.study import CLEAN, row_settings

# Options of `protections.adaptive`.
_ADAPTIVE = ("transforms", "consistency_weight")
_METHODS = {
  "advdm": "AdvDM",
  "aspl": "ASPL",
  "diffpure": "DiffPure",
  "dreambooth": "DreamBooth",
  "eudp": "EUDP",
  "fsmg": "FSMG",
  "glaze": "Glaze",
  "gridpure": "GrIDPure",
  "impress": "IMPRESS",
  "jpeg": "JPEG",
  "lora": "LoRA",
  "mist": "Mist",
  "photoguard_diffusion": "PhotoGuard (diffusion)",
  "photoguard_encoder": "PhotoGuard (encoder)",
  "sds": "SDS",
  "udp": "UDP",
  "vae_roundtrip": "VAE round trip",
}
_NOISES = {"uniform": "Uniform noise", "sign": "Sign noise, full strength"}


class Pair(NamedTuple):
  """A row and the one that it is compared with.

  Attributes:
    row: a protection.
    other: a control, or the same protection in its plain form.
    kind: "control" or "plain".
  """

  row: str
  other: str
  kind: str


def is_control(config: Any, row: str) -> bool:
  """Whether a row is there for others to be measured against."""
  return row == CLEAN or row_settings(config, row)[0] in CONTROLS


def method_label(name: str) -> str:
  """A purifier's or threat's name in tables."""
  return _METHODS.get(name, name.replace("_", " "))


def row_label(config: Any, row: str) -> str:
  """A row's name in tables: "Mist, adaptive" for mist_adaptive, what noise it is for noise."""
  if row == CLEAN:
    return label(config, row)
  method, _, of, options = row_settings(config, row)
  if of is not None and method in CONTROLS:
    suffix = "matched noise" if method == "matched_noise" else "shuffled"
    return f"{row_label(config, of)}, {suffix}"
  if method == "random_noise":
    return _NOISES.get(options.get("distribution", "uniform"), label(config, row))
  if row == method:
    return _METHODS[method] if method in _METHODS else label(config, row)
  if row.endswith("_adaptive") and method.startswith(row.removesuffix("_adaptive")):
    return f"{method_label(method)}, adaptive"
  return label(config, row)


def pairs(config: Any, plan: Plan) -> list[Pair]:
  """What each protection of a plan is read against, in the plan's order.

  The control is noise of the protection's own values where the plan has such a row, else the
  control of every plan. An adaptive form is also read against its plain form: the row of the same
  method, rounds and other options.
  """
  protections = [row for row in plan.rows if not is_control(config, row)]
  matched = {}
  for row in plan.rows:
    if row != CLEAN and row_settings(config, row)[0] == "matched_noise":
      matched[row_settings(config, row)[2]] = row
  found = [Pair(row, matched.get(row, CONTROL), "control") for row in protections]
  for row in protections:
    if not _adaptive(config, row):
      continue
    for other in protections:
      if not _adaptive(config, other) and _plain(config, other) == _plain(config, row):
        found.append(Pair(row, other, "plain"))
  return found


def _adaptive(config: Any, row: str) -> bool:
  return any(row_settings(config, row)[3].get(name) for name in _ADAPTIVE)


def _plain(config: Any, row: str) -> tuple[Any, ...]:
  method, rounds, of, options = row_settings(config, row)
  return method, rounds, of, {k: v for k, v in options.items() if k not in _ADAPTIVE}
