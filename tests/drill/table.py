"""The drill's table: in words on the terminal, and as Markdown and JSON in the working folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.drill.ledger import Try

# What a part counts, and what its two measurements are.
UNITS = {
  "kills": "runs killed and resumed",
  "hostile": "damaged files",
  "budget": "pictures saved and read again",
  "two": "pairs of processes",
}
_HEADS = ("what", "kind", "tries", "passed", "failed", "worst s", "peak MiB", "tries' numbers")


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    part: see `ledger.Try`.
    kind: see `ledger.Try`.
    tries: how many were made.
    wanted: how many there are to be.
    failed: how many of them failed.
    seconds: of the slowest.
    peak_mib: of the largest.
    numbers: first and last number of a try, from which and the drill's seed its own is drawn.
    failures: the first lines of what went wrong.
  """

  part: str
  kind: str
  tries: int
  wanted: int
  failed: int
  seconds: float
  peak_mib: float
  numbers: str
  failures: tuple[str, ...]


def row(part: str, kind: str, tries: Sequence[Try], wanted: int) -> Row:
  """Adds up the tries of a kind. A batch fails as often as it says something."""
  failures = [line for made in tries for line in made.failures]
  failed = sum(min(len(made.failures), made.count) for made in tries)
  numbers = f"{tries[0].number}-{tries[-1].number}" if tries else ""
  return Row(
    *(part, kind, sum(made.count for made in tries), wanted, failed),
    max((made.seconds for made in tries), default=0.0),
    max((made.peak_mib for made in tries), default=0.0),
    numbers,
    tuple(failures[:20]),
  )


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
  """The table, below it how it was made and what each measurement is."""
  lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
  for entry in rows:
    tries = f"{entry.tries:,}" + ("" if entry.tries >= entry.wanted else f" of {entry.wanted:,}")
    cells = (UNITS[entry.part], entry.kind, tries, f"{entry.tries - entry.failed:,}")
    cells += (f"{entry.failed:,}", f"{entry.seconds:.2f}", f"{entry.peak_mib:.0f}", entry.numbers)
    lines.append("| " + " | ".join(cells) + " |")
  lines += ["", *(f"- {name}: {value}" for name, value in about.items())]
  if failures := [line for entry in rows for line in entry.failures]:
    lines += ["", "What failed:", "", *(f"- {line}" for line in failures)]
  return "\n".join(lines) + "\n"
