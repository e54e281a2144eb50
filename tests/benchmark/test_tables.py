"""bench.json as text and Markdown."""

from __future__ import annotations

from udp_jax.benchmark import plan, tables


def _report() -> dict:
  race = {"work": "round", "model": "demo", "batch": 8, "dtype": "float32"}
  rows = [
    {**race, "framework": "jax", "variant": "one_step", "median_s": 1.5, "ratio": 0.75},
    {**race, "framework": "jax", "variant": "scan_3", "median_s": 1.25, "ratio": 0.625},
    {**race, "framework": "torch", "variant": "compile", "reason": "it | broke"},
    {**race, "framework": "torch", "variant": "channels_last", "median_s": 2.0, "ratio": 1.0},
  ]
  for row in rows:
    row["best_peer"] = "torch channels_last"
  header = {
    "title": "A title",
    "notice": "A notice.",
    "command": "python -m x",
    "date": "2026-01-02",
    "commit": "",
    "hardware": {"processor": "CPU", "cores": "2"},
    "versions": {"jax": "1"},
    "threads": {"jax": 2, "torch": 2},
    "matmul_gflops": {"jax": {"float32": 300.4}, "torch": {"float32": 171.0}},
  }
  scaling = [{"devices": 1, "round_s": 0.5, "collectives": 0, "differs": 0.0}]
  primitives = [
    {"primitive": "p", "what": "forward", "ratio": 1.0, "flagged": False},
    {"primitive": "p", "what": "weight grad", "ratio": 90.0, "flagged": True},
  ]
  empty: dict = {section: [] for section in plan.SECTIONS[1:]}
  sections = empty | {"scaling": scaling, "primitives": primitives}
  return {"header": header, "rows": [tables.race_row(row) for row in rows], **sections, "done": []}


def test_text_is_aligned_and_complete() -> None:
  shown = tables.text(_report())
  for part in ("A title", "commit unknown", "jax 300 (float32); torch 171 (float32)", "A notice."):
    assert part in shown
  lines = shown.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith("work "))
  head, rule, *rows = lines[start : start + 6]
  assert len(rows) == 4
  # Numbers stand at the right of their columns, words at the left.
  end = head.index("median s") + len("median s")
  assert [row[:end].split()[-1] for row in rows] == ["1.5000", "1.2500", "-", "2.0000"]
  assert all(row[end - 1] != " " for row in rows)
  assert "it | broke" in rows[2]
  # Columns that nobody has are left out; zero is a number.
  assert "TFLOP" not in head
  assert "differs" in shown and "0.000000" in shown
  assert [line.endswith("yes") for line in lines if line.startswith("p ")] == [False, True]


def test_markdown_has_whole_tables() -> None:
  shown = tables.markdown(_report())
  assert shown.startswith("# A title\n") and shown.endswith("\n")
  table = [line for line in shown.splitlines() if line.startswith("| ")]
  races = [line for line in table if "torch" in line or "one_step" in line]
  assert len({line.replace("\\|", "").count("|") for line in races}) == 1
  assert "it \\| broke" in shown
  assert "## Devices, forced on one CPU" in shown and "## Cost" not in shown


def test_a_gpu_is_shown_with_its_rates_and_columns() -> None:
  report = _report()
  report["header"]["hardware"]["gpu"] = "A Card, driver 1.2, 80 GB"
  report["header"]["copy_gbs"] = {"jax": 2800.4, "torch": 2900.0}
  known = {"race": "sd", "precision": "tf32", "device_mib": 900.0, "mfu": 41.26, "mfu_of": "torch"}
  report["rows"] = [tables.race_row({**row, **known}) for row in report["rows"]]
  for shown in (tables.text(report), tables.markdown(report)):
    assert "GPU: A Card, driver 1.2, 80 GB" in shown
    assert "best copy, GB/s read and written: jax 2800; torch 2900" in shown
    for head in ("race", "precision", "device MiB", "MFU %", "FLOPs by"):
      assert head in shown
    assert "41.3" in shown and "remat" not in shown and "XLA flags" not in shown
  assert tables.verdicts(report["rows"])[0].startswith("sd: round demo batch 8 float32: 0.62")


def test_a_missing_peer_and_missing_rates_are_told() -> None:
  report = _report()
  told = ("without PyTorch: no diffusers", "not measured: copy of torch: out of memory")
  for shown in (tables.text(report), tables.markdown(report)):
    assert "without PyTorch" not in shown and "not measured" not in shown
  report["header"]["without_torch"] = "no diffusers"
  report["header"]["unmeasured"] = {"copy of torch": "out of memory"}
  for shown in (tables.text(report), tables.markdown(report)):
    assert all(line in shown for line in told)


def test_what_was_left_out_is_listed() -> None:
  report = _report() | {"left_out": [{"task": "sd/max", "reason": "no time left"}]}
  assert tables.text(report).endswith("\n  sd/max: no time left")
  assert "## Left out" in tables.markdown(report) and "`sd/max`: no time left" in (
    tables.markdown(report)
  )
  assert "Left out" not in tables.text(_report()) + tables.markdown(_report())


def test_verdict_is_of_our_fastest_form() -> None:
  (line,) = tables.verdicts(_report()["rows"])
  assert line == "round demo batch 8 float32: 0.62 of torch channels_last (scan_3)"
  assert tables.verdicts([]) == []


def test_rows_have_every_field() -> None:
  row = tables.race_row({"work": "max"})
  assert set(row) == set(tables.ROW_FIELDS)
  assert row["work"] == "max" and row["median_s"] is None
  # Of the other fields only those that tell something, so that other machines' rows are as before.
  more = {"race": "sd", "remat": False, "precision": "", "device_mib": None}
  assert set(tables.race_row(more)) - set(tables.ROW_FIELDS) == {"race"}
  assert not set(tables.MORE_FIELDS) & set(tables.ROW_FIELDS)
