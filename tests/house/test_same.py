"""The comparison sees what differs, by checkouts whose programs take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.house import same

# What a program of a checkout makes: a picture, arrays, a manifest, a report.
_PROGRAM = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from PIL import Image

level, noise = {level}, {noise}
work = Path("work")
work.mkdir()
assert "--workdir=work" in sys.argv and os.environ["PYTHONPATH"] == str(Path(__file__).parents[1])
assert not Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).exists()
Image.fromarray(np.full((4, 4), level, np.uint8)).save(work / "one.png")
np.savez(work / "deltas.npz", delta=np.full(3, noise))
manifest = {{"created": time.time(), "versions": {{}}, "images": [{{"max_abs_255": level}}]}}
manifest["config"] = {{"start": {start!r}}}
(work / "manifest.json").write_text(json.dumps(manifest))
report = {{"date": str(time.time()), "rows": [{{"mean": noise, "std": None}}]}}
(work / "report.json").write_text(json.dumps(report))
sys.exit({code})
"""


def _checkout(folder: Path, **changes: Any) -> Path:
  (folder / "experiments").mkdir(parents=True)
  text = _PROGRAM.format(**{"level": 7, "noise": 0.1, "start": "sign", "code": 0} | changes)
  (folder / "experiments" / "eudp.py").write_text(text)
  return folder


def _said(
  capsys: pytest.CaptureFixture[str], folder: Path, *words: str, **changes: Any
) -> tuple[int, list[str]]:
  """Exit code and lines of a comparison of a checkout with a changed one."""
  checkouts = [_checkout(folder / "a"), _checkout(folder / "b", **changes)]
  code = same.main([*map(str, checkouts), "--only=eudp_demo", *words])
  return code, capsys.readouterr().out.splitlines()[2:]


def test_equal_checkouts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
  code, said = _said(capsys, tmp_path)
  assert code == 0
  (line,) = said
  assert line.startswith("| eudp_demo | 4 | 4 | 0 | 0 | ")


def test_what_differs_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
  code, said = _said(capsys, tmp_path, level=8, noise=0.2)
  assert code == 1
  assert said[0].startswith("| eudp_demo | 4 | 4 | 4 | 0 | ")
  assert [line.partition(":")[2].split(":")[0].strip() for line in said[1:]] == [
    "work/deltas.npz delta",
    "work/manifest.json /images/0/max_abs_255",
    "work/one.png",
    "work/report.json /rows/0/mean",
  ]


@pytest.mark.parametrize(("words", "code"), [((), 1), (("--settings_may_differ",), 0)])
def test_settings_may_be_allowed_to_differ(
  capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
  found, said = _said(capsys, tmp_path, *words, start="zero")
  assert found == code and said[0].startswith("| eudp_demo | 4 | 4 | 0 | 1 | ")
  assert said[1:] == ["eudp_demo: setting work/manifest.json /config/start: sign, zero"]


def test_a_program_that_fails_is_no_equality(
  capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
  code, said = _said(capsys, tmp_path, code=3)
  assert code == 1 and "exit code 3" in said[1]


def test_a_file_that_is_missing(tmp_path: Path) -> None:
  for name in ("before", "after"):
    (tmp_path / name).mkdir()
  Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "after" / "new.png")
  (tmp_path / "before" / "cells.csv").write_text("a,b\n1,2\n")
  (tmp_path / "after" / "cells.csv").write_text("a,b\n1,3\n")
  compared = same.compare(tmp_path / "before", tmp_path / "after")
  assert compared.files == 1 and compared.numbers == 2
  assert compared.differences == [
    "new.png: only after",
    "cells.csv line 2: ('1', '2'), ('1', '3')",
  ]


def test_keys_that_are_missing(tmp_path: Path) -> None:
  for name, rows in (("before", {"a": 1}), ("after", {"b": []})):
    (tmp_path / name).mkdir()
    (tmp_path / name / "manifest.json").write_text(json.dumps({"code_sha256": name, "rows": rows}))
  assert same.compare(tmp_path / "before", tmp_path / "after").differences == [
    "manifest.json /rows/a: 1, is missing",
    "manifest.json /rows/b: is missing, []",
  ]


def test_where_the_folders_are_does_not_count(tmp_path: Path) -> None:
  for name, source in (("before", "input"), ("after", "input"), ("third", "other")):
    (tmp_path / name / "run").mkdir(parents=True)
    record = {"folder": str(tmp_path / name / source)}
    (tmp_path / name / "run" / "manifest.json").write_text(json.dumps(record))
  before, after, third = (tmp_path / name / "run" for name in ("before", "after", "third"))
  assert same.compare(before, after).differences == []
  assert same.compare(before, third).differences == [
    "manifest.json /folder: HERE/input, HERE/other"
  ]


def test_programs_are_listed_and_named(capsys: pytest.CaptureFixture[str]) -> None:
  assert same.main(["--list", "--only=protect_two_processes"]) == 0
  (line,) = capsys.readouterr().out.splitlines()
  two = f"bash CHECKOUT/launch/local.sh 2 --log_dir=../logs -- {sys.executable} -m experiments."
  assert line.startswith(f"protect_two_processes: {two}")
  with pytest.raises(SystemExit, match="2"):
    same.main(["--only=eudp", "a", "b"])
  assert "no program eudp; known: eudp_demo" in capsys.readouterr().err


@pytest.mark.parametrize("name", same.RUNS)
def test_programs_know_their_flags(name: str, load_entry_point) -> None:
  module, *words = same.RUNS[name].words
  assert load_entry_point(module).parse(*words) == ["program"]
