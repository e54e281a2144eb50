"""Survival in a matrix's report: as sentences, as tables for the page, and as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udp_jax.metrics import differences, survival
from udp_jax.report import names as names_lib
from udp_jax.report import plots, text
from udp_jax.report.names import NONE

_GOOD, _BAD = 2 / 3, 1 / 3


def primary(report: Mapping[str, Any]) -> list[tuple[int, str]]:
  """Returns the survivals that are shown first, as (number of the table, metric).

  These are the headline metrics of each table, or its first metric if it has no headline metric.
  """
  chosen = []
  for number, table in enumerate(report["tables"]):
    known = [m for m in table["metrics"] if m["key"] in table["survival"]]
    keys = [m["key"] for m in known if m["headline"]] or [m["key"] for m in known[:1]]
    chosen += [(number, key) for key in keys]
  return chosen


def others(report: Mapping[str, Any]) -> list[tuple[int, str]]:
  """Returns the survivals that `primary` leaves out."""
  chosen = primary(report)
  return [
    (number, key)
    for number, table in enumerate(report["tables"])
    for key in table["survival"]
    if (number, key) not in chosen
  ]


def subject(table: Mapping[str, Any]) -> str:
  """Describes the subject of a table in words."""
  if table["threat"] is None:
    return "The pictures themselves"
  name = names_lib.method_label(table["threat"])
  return f"{name[:1].upper()}{name[1:]} ({table['kind']})"


def metric_of(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """Returns the description of one metric of a table."""
  return next(metric for metric in table["metrics"] if metric["key"] == key)


def is_complete(line: Mapping[str, Any]) -> bool:
  """Whether a line of a survival table has a result for every purifier."""
  return bool(line["judged"] == line["purifiers_count"])


def is_control(report: Mapping[str, Any], row: str) -> bool:
  """Whether a row of the report is a control."""
  return bool(next(entry["control"] for entry in report["rows"] if entry["name"] == row))


def is_reversed(line: Mapping[str, Any], metric: Mapping[str, Any]) -> bool:
  """Whether a row clearly helps the attacker: it moves a metric against the owner's interest."""
  if metric["better"] is None or line["effect"] is None or line["reason"]:
    return False
  return bool((line["effect"] > 0) != (metric["better"] == "higher"))


def summary(report: Mapping[str, Any]) -> str:
  """Returns a sentence about what was done; `findings` has the outcome."""
  count = sum(not row["control"] for row in report["rows"])
  said = (
    f"{count} protections of {report['data']['pictures']} pictures, each within "
    f"{text.budget(report)} of 255 levels, were taken through {len(report['purifiers']) - 1} "
    f"purifiers and {len(report['threats'])} threats. "
  )
  if len(report["purifiers"]) == 1:
    said += "Nothing was purified, so the tables show effects and no survival. "
  else:
    said += "Survival is the share of a protection's effect that is left after a purifier. "
  failed = len(report["failures"])
  return (said + (f"Cells that failed and are missing: {failed}." if failed else "")).strip()


def findings(report: Mapping[str, Any]) -> list[str]:
  """One sentence per primary table that claims no more than it shows; none without purifiers."""
  if len(report["purifiers"]) == 1:
    return []
  names = {row["name"]: row["label"] for row in report["rows"]}
  count = sum(not row["control"] for row in report["rows"])
  said = []
  for number, key in primary(report):
    table = report["tables"][number]
    metric = metric_of(table, key)
    known = [
      line
      for line in table["survival"][key]
      if line["worst"] is not None
      and not is_control(report, line["row"])
      and not is_reversed(line, metric)
    ]
    # Worst cases over different sets of purifiers cannot be compared.
    own = [line for line in known if is_complete(line)]
    where = f"{subject(table)}, {metric['label']}"
    if not known and any(x["reason"] == survival.TOO_FEW for x in table["survival"][key]):
      said.append(f"{where}: nothing is claimed from so few trained models or pictures.")
      continue
    if not known:
      said.append(
        f"{where}: no protection had an effect in its favour that could be told from none, so the "
        "run is too small, or the protections too weak, to say what survives."
      )
      continue
    if not own:
      said.append(f"{where}: no protection was measured after every purifier.")
      continue
    best = max(own, key=lambda line: line["worst"])
    said.append(
      f"{where}: {len(known)} of {count} had an effect to lose{_beyond(table, key)}; "
      f"{names[best['row']]} has the highest estimate of its worst case, "
      f"{100 * best['worst']:.0f} %"
      f"{_limits(best)} (after {_purifier_label(report, best['worst_purifier'])}, the worst of "
      f"{best['judged']})."
    )
  return said


def _limits(line: Mapping[str, Any]) -> str:
  """The interval of a worst case in words."""
  if line["worst_interval"] is None:
    return ", with no bound on it"
  low, high = line["worst_interval"]
  return f", interval {100 * low:.0f} to {100 * high:.0f} %"


def _beyond(table: Mapping[str, Any], key: str) -> str:
  """Says how many protections do more than noise (Holm), before and after every purifier."""
  lines = [line for line in table["against"].get(key, ()) if line["kind"] == "control"]
  if not lines:
    return ""
  before = sum(differences.side(line["purifiers"].get(NONE)) > 0 for line in lines)
  after = sum(
    all(differences.side(found) > 0 for found in line["purifiers"].values()) for line in lines
  )
  return f", {before} beyond their noise control and {after} still so after every purifier"


def block(
  report: Mapping[str, Any], number: int, key: str, series: Mapping[str, plots.Series]
) -> dict[str, Any]:
  """Returns one survival table for the page."""
  table = report["tables"][number]
  metric = metric_of(table, key)
  purifiers = [entry for entry in report["purifiers"] if entry["name"] != NONE]
  lines = []
  for line in table["survival"][key]:
    shown = [_ratio(line["purifiers"][entry["name"]]) for entry in purifiers]
    # Without purifiers there is no worst case.
    over = [_over_purifiers(line, field) for field in ("worst", "mean")] if purifiers else []
    lines.append(
      {
        "series": series[line["row"]],
        "effect": text.format_number(line["effect"], metric["digits"]),
        "noise": ""
        if line["noise"] is None
        else text.format_number(line["noise"], metric["digits"]),
        "effect_sort": sortable(line["effect"]),
        "reversed": is_reversed(line, metric),
        "ratios": shown + over,
      }
    )
  return {
    "id": f"survival-{number}-{key}",
    "subject": subject(table),
    "metric": metric,
    "purifiers": purifiers,
    "lines": lines,
    "against": _against(report, table, key, series),
    "against_id": f"against-{number}-{key}",
  }


def _against(
  report: Mapping[str, Any],
  table: Mapping[str, Any],
  key: str,
  series: Mapping[str, plots.Series],
) -> list[dict[str, Any]]:
  """Lines of the table of differences: a protection minus its control, or minus its plain form."""
  digits = metric_of(table, key)["digits"]
  lines = []
  for line in table["against"].get(key, ()):
    cells = []
    for purifier in report["purifiers"]:
      found = line["purifiers"][purifier["name"]]
      cells.append(
        {
          "text": text.format_number(found["mean"], digits),
          "sort": sortable(found["mean"]),
          "side": {1: "kept", -1: "lost", 0: ""}[differences.side(found)],
          "range": text.format_interval(found["interval"], digits),
        }
      )
    lines.append(
      {"series": series[line["row"]], "other": series[line["other"]].label, "cells": cells}
    )
  return lines


def _over_purifiers(line: Mapping[str, Any], field: str) -> dict[str, Any]:
  """A cell over all purifiers, with a note if some of them have no result."""
  interval = line["worst_interval"] if field == "worst" else None
  made = _ratio({"value": line[field], "interval": interval, "reason": line["reason"]})
  if line[field] is not None:
    made["range"] = f"{made['range']} of {line['judged']} purifiers".strip()
    if not is_complete(line):
      made["side"] = ""
  return made


def _ratio(found: Mapping[str, Any]) -> dict[str, Any]:
  value = found["value"]
  if value is None:
    # Visible without hovering, because phones have no pointer.
    # "No effect to survive: ..." and "too few to survive on: ..." are cut before their reasons.
    short = found["reason"].partition(" to survive")[0]
    return {
      "text": text.MISSING,
      "sort": "",
      "side": "",
      "note": found["reason"],
      "range": short,
    }
  # Marked only where all of the interval lies beyond a limit.
  low, high = found["interval"] or (_BAD, _GOOD)
  judged = "kept" if low >= _GOOD else "lost" if high <= _BAD else ""
  return {
    "text": text.format_number(value, 2),
    "sort": repr(value),
    "side": judged,
    "note": "",
    "range": text.format_interval(found["interval"], 2),
  }


def sortable(value: float | None) -> str:
  """Sort key for the page's script; "" sorts last."""
  return "" if value is None else repr(value)


def format_survival(report: Mapping[str, Any]) -> str:
  """Effect, worst case and mean of every row in plain text, a block for each primary table."""
  names = {row["name"]: row["label"] for row in report["rows"]}
  purified = len(report["purifiers"]) > 1
  blocks = []
  for number, key in primary(report):
    table = report["tables"][number]
    metric = metric_of(table, key)
    head = [f"{subject(table)}: {metric['label']}", "effect"]
    head += ["worst", "after", "mean"] if purified else []
    lines = []
    for line in table["survival"][key]:
      shown = [names[line["row"]], text.format_number(line["effect"], metric["digits"])]
      if purified:
        after = _purifier_label(report, line["worst_purifier"] or text.MISSING)
        shown += [text.format_number(line["worst"], 2), after, text.format_number(line["mean"], 2)]
      lines.append(shown)
    blocks.append(_aligned(head, lines))
  return "\n\n".join(blocks) or "nothing was measured"


def _purifier_label(report: Mapping[str, Any], name: str) -> str:
  """Returns a purifier's label in a report, which may name its prior."""
  known = {entry["name"]: entry["label"] for entry in report["purifiers"]}
  return known[name] if known.get(name, name) != name else names_lib.method_label(name)


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
  rule = ["-" * width for width in widths]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
    for line in [head, rule, *lines]
  )
