"""Checks a budget from saved files: the main of `udp-jax verify` and `experiments.verify`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from udp_jax.commands import cli
from udp_jax.data import naming, places
from udp_jax.data.marks import read_manifest
from udp_jax.data.verify import FileReport, VerifyReport, verify
from udp_jax.errors import ConfigError
from udp_jax.runtime import files

_ROWS = 20
FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("clean", None, "Folder of the clean images.")
  flags.DEFINE_string("protected", None, "Folder of the protected images.")
  flags.DEFINE_float(
    "radius_255",
    None,
    "The budget: largest allowed difference of any sample, in 8-bit levels; default: what the "
    "manifest of the protected folder promises.",
  )
  flags.DEFINE_string(
    "json", None, "Also write the report as JSON to this file; '-' prints it instead of the table."
  )


def main(argv: Sequence[str]) -> int:
  """Prints the report on the folders in the flags and returns the exit code."""
  del argv
  clean, protected, radius_255 = FLAGS.clean, FLAGS.protected, FLAGS.radius_255
  if protected is not None and radius_255 is None:
    radius_255 = (read_manifest(protected) or {}).get("radius_255")
  if clean is None or protected is None or radius_255 is None:
    raise ConfigError("--clean, --protected and --radius_255 are all needed; see --help")
  with places.use(
    pictures={"--clean": clean, "--protected": protected}, reports={"--json": FLAGS.json}
  ) as used:
    report = verify(clean, protected, radius_255)
    if FLAGS.json == "-":
      print(files.to_json(as_dict(report)))
    else:
      print(table(report))
      if FLAGS.json:
        files.write_json(used["--json"], as_dict(report))
  return 0 if report.ok else 1


def table(report: VerifyReport) -> str:
  """Formats the report: all offending files, the closest of the others, notes, and a verdict."""
  lines = [f"{'levels':>6}  {'':4}  file"]
  fine = [
    entry for entry in report.files if entry.problem is None and entry.max_abs_255 is not None
  ]
  fine.sort(key=lambda entry: (-(entry.max_abs_255 or 0), entry.name))
  lines += [_row(entry) for entry in (*report.failures, *fine[:_ROWS])]
  if len(fine) > _ROWS:
    lines.append(f"        ... and {len(fine) - _ROWS} more that keep the budget")
  noted = [f"note: {entry.name}: {note}" for entry in report.files for note in entry.notes]
  lines += noted[:_ROWS]
  if len(noted) > _ROWS:
    lines.append(f"note: ... and {len(noted) - _ROWS} more notes (see --json)")
  worst = f", worst {report.worst.max_abs_255}" if report.worst is not None else ""
  budget = f"budget {report.radius_255:g} levels{worst}"
  if report.ok:
    lines.append(f"OK: {report.checked} files keep the budget ({budget})")
  else:
    lines.append(f"FAILED: {len(report.failures)} files; {report.checked} measured ({budget})")
  return "\n".join(map(naming.printable, lines))


def as_dict(report: VerifyReport) -> dict:
  """Converts the report for JSON: one object per file, and the verdict."""
  return {
    "ok": report.ok,
    "radius_255": report.radius_255,
    "checked": report.checked,
    "worst": report.worst._asdict() if report.worst is not None else None,
    "failures": [entry._asdict() for entry in report.failures],
    "files": [entry._asdict() for entry in report.files],
  }


def _row(entry: FileReport) -> str:
  levels = "-" if entry.max_abs_255 is None else str(entry.max_abs_255)
  verdict = "ok" if entry.problem is None else "FAIL"
  return f"{levels:>6}  {verdict:4}  {entry.name}" + (
    f"  ({entry.problem})" if entry.problem is not None else ""
  )


def start(call: cli.Call | None = None) -> None:
  """Defines the flags and runs `main`, as `udp-jax` calls it or as a main of `experiments`."""
  define()
  cli.run(main, several=False, call=call)
