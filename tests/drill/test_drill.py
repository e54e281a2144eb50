"""The drill itself: what it tries, what it finds, and that it goes on where it was."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.drill import (
  __main__,
  budget,
  hostile,
  kills,
  ledger,
  mutate,
  processes,
  programs,
  readers,
  samples,
  table,
  together,
)
from tests.drill.ledger import Ledger, Try
from tests.drill.processes import Ended

TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: bad\n"


@pytest.fixture(autouse=True)
def small_bombs(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(mutate, "_BOMB_BYTES", 2 << 20)
  mutate.bomb.cache_clear()
  yield
  mutate.bomb.cache_clear()


def _ended(code: int, err: str = "") -> Ended:
  return Ended(code, "", err, 1.0, 1.0)


def test_finished_tries_are_kept_and_a_torn_line_is_not(tmp_path: Path) -> None:
  path = tmp_path / "tries.jsonl"
  made = Try("kills", "eudp", 3, failures=("a line",), details={"codes": [0]})
  Ledger(path, "code").add(made)
  path.write_text(path.read_text() + '{"identity": "code", "try": {"part": "ki')
  again = Ledger(path, "code")
  assert again.of("kills", "eudp") == [made] and again.others == 0
  again.add(made._replace(number=4))
  assert Ledger(path, "code").has("kills", "eudp", 4)
  assert Ledger(path, "other code").others == 2 and not Ledger(path, "x").has("kills", "eudp", 3)


def test_seeds_differ_by_everything() -> None:
  drawn = {ledger.seed_of(s, p, k, n) for s in (0, 1) for p in "ab" for k in "ab" for n in (0, 1)}
  assert len(drawn) == 16


def test_table_counts_batches_and_failures() -> None:
  tries = [Try("hostile", "png", n, 50, 1.0 + n, 10.0, ("x",) * n) for n in range(3)]
  row = table.row("hostile", "png", tries, 200)
  assert row[2:8] == (150, 200, 3, 3.0, 10.0, "0-2")
  text = table.markdown([row], {"command": "c"})
  assert "| damaged files | png | 150 of 200 | 147 | 3 | 3.00 | 10 | 0-2 |" in text
  assert "- command: c" in text and text.count("- x") == 3


# Comparing folders.


def test_differences_and_leftovers(tmp_path: Path) -> None:
  first, second = tmp_path / "a", tmp_path / "b"
  for folder, created in ((first, 1), (second, 2)):
    (folder / "stages" / "checkpoints").mkdir(parents=True)
    (folder / "stages" / "checkpoints" / "1").write_text(str(created))
    (folder / "manifest.json").write_text(json.dumps({"created": created, "images": [1]}))
    (folder / "x.png").write_bytes(b"same")
  same = processes.digests(first)
  assert same.keys() == {"manifest.json", "x.png"} and processes.digests(second) == same
  assert processes.leftovers(second) == []
  (second / "x.png").write_bytes(b"other")
  (second / "manifest.json").write_text(json.dumps({"created": 2, "images": [2]}))
  (second / ".y.udp-tmp").touch()
  assert processes.differences(same, processes.digests(second)) == [
    "1 files left over: .y.udp-tmp",
    "2 files other bytes: manifest.json, x.png",
  ]
  assert processes.leftovers(second) == ["temporary file left: .y.udp-tmp"]
  with open(first / ".udp-lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert processes.leftovers(first) == ["lock still held: .udp-lock"]
  assert processes.leftovers(first) == []
  assert processes.differences(same, processes.digests(first)) == ["1 files left over: .udp-lock"]


@pytest.mark.parametrize(
  ("both", "said"),
  [
    ((_ended(0), _ended(4, "error: in use\n")), ""),
    ((_ended(4, "error: in use\n"), _ended(0)), ""),
    ((_ended(0), _ended(0)), "both work"),
    ((_ended(0), _ended(0, "purify: nothing to do, 6 pictures are finished\n")), ""),
    ((_ended(0, "purify: nothing to do, 6 pictures are finished\n"), _ended(0)), ""),
    ((_ended(4, "error: a\n"), _ended(4, "error: b\n")), "nobody works"),
    ((_ended(0), _ended(4)), "0 lines of error"),
    ((_ended(0), _ended(1, TRACEBACK)), "the second ends in a traceback: ValueError: bad"),
    ((_ended(3, "error: damaged\n"), _ended(0)), "the first ends with 3: error: damaged"),
  ],
)
def test_how_two_may_end(both: tuple[Ended, Ended], said: str) -> None:
  found = together.judge(list(both))
  assert [said in line for line in found] == ([True] if said else [])


# Damaged files.


def test_good_files_survive_being_taken_apart() -> None:
  for split, join, contents in (
    (mutate.png_split, mutate.png_join, samples.png() + samples.apng()),
    (mutate.jpeg_split, mutate.jpeg_join, samples.jpeg() + samples.mpo()),
    (mutate.riff_split, mutate.riff_join, samples.webp()),
    (mutate.gif_split, mutate.gif_join, samples.gif()),
  ):
    for content in contents:
      assert split(content) and join(split(content)) == content


@pytest.mark.parametrize("kind", readers.KINDS)
def test_good_files_are_read_and_damage_is_the_same_each_time(kind: str, tmp_path: Path) -> None:
  place = readers.Folder(tmp_path / "place")
  given = readers.KINDS[kind]
  path = readers.place_file(kind, 0, given.samples()[0], place)
  assert readers.outcome(given.use, place, path) in ("read", "refused")
  seeds = [hostile.seed_of(0, kind, number) for number in range(6)]
  made = [readers.make(kind, seed) for seed in seeds]
  assert made == [readers.make(kind, seed) for seed in seeds]
  assert len(set(made)) == len(made)


@pytest.mark.parametrize("kind", [*list(readers.KINDS)[:8], "metadata.jsonl", "record", "npz"])
def test_some_damaged_files_of_every_kind(kind: str, tmp_path: Path) -> None:
  place = readers.Folder(tmp_path / "place")
  for number in range(6):
    path = readers.place_file(kind, number, readers.make(kind, 1000 + number), place)
    assert readers.outcome(readers.KINDS[kind].use, place, path) in ("read", "refused")
    if not readers.KINDS[kind].together:
      place.check_good()
      path.unlink(missing_ok=True)
  place.check()


def test_lost_good_files_are_found(tmp_path: Path) -> None:
  place = readers.Folder(tmp_path / "place")
  place.check()
  (place.input / "good0.png").unlink()
  with pytest.raises(readers.Finding, match="lost or changed.*good0.png"):
    place.check()
  place.restore()
  place.check()


WORKER = """
import json, os, signal, sys, time

NUMBER = {"next": None, "number": None, "outcome": "", "finished": False, "failures": []}
NUMBER |= {"seconds": 0.0, "peak_mib": 1.0}

def say(**fields):
  print(json.dumps(NUMBER | fields), flush=True)

for line in sys.stdin:
  request = json.loads(line)
  for number in range(request["first"], request["first"] + request["count"]):
    if number in request["skip"]:
      continue
    say(next=number)
    if number == 1:
      os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
      while True:
        pass
    say(number=number, outcome="read")
  say(finished=True)
"""


@pytest.mark.slow
def test_readers_that_die_or_hang_are_replaced(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  (tmp_path / "stand_in.py").write_text(WORKER)
  monkeypatch.setattr(hostile, "HANG_S", 0.3)
  env = processes.environment(tmp_path) | {"PYTHONPATH": str(tmp_path)}
  monkeypatch.setattr(processes, "ROOT", tmp_path)
  reader = hostile.Reader(
    "bmp", seed=0, folder=tmp_path / "found", memory=tmp_path / "files", env=env, batch=4
  )
  reader._start = lambda: hostile.Worker(("stand_in",), tmp_path / "found", env)  # type: ignore
  made = reader.attempt(0)
  reader.close()
  assert made.details == {"outcomes": {"read": 2, "refused": 0}}
  assert ["kills the reader (-11)" in f or "hangs for over 0.3 s" in f for f in made.failures] == [
    True,
    True,
  ]
  kept = tmp_path / "found" / "found" / "000001"
  assert (kept / "h1.bmp").read_bytes() == readers.make("bmp", hostile.seed_of(0, "bmp", 1))
  assert "--reproduce='bmp:1'" in (kept / "what.txt").read_text()


# Budgets.


@pytest.mark.parametrize("kind", ["sets", "singles", "not finite"])
def test_saved_pictures_keep_their_budget(kind: str, tmp_path: Path) -> None:
  assert budget.batch(kind, 0, 0, 24, tmp_path / "pictures") == []


def test_every_kind_of_delta_and_radius_is_drawn() -> None:
  assert {0.5, 6.375, 7.65, 16.0, 255.0} <= set(budget.radii())
  deltas = budget.draw_deltas(np.random.default_rng(0), (200, 3, 3, 3), 7.65)
  assert np.isfinite(deltas).all() and deltas.dtype == np.float32
  assert np.abs(deltas).max() > 1e29 and (deltas == 0).any()
  assert (np.abs(deltas).reshape(200, -1).max(1) <= 7.65 / 255 + 1e-6).any()


def test_broken_budgets_are_found() -> None:
  clean = np.full((2, 2, 3), 100, np.uint8)
  found, alpha = clean.copy(), np.zeros((2, 2), np.uint8)
  found[0, 0, 0] = 108
  assert budget.broken(clean, found, 8) == ""
  assert budget.broken(clean, found, 7.65) == "changes 8 levels of 7.65"
  assert budget.broken(clean, found, 8, allowed=alpha > 0) == "changes where it may not"
  assert budget.broken(clean, clean, 8, alpha, alpha + 1) == "has another transparency"
  assert budget.broken(clean, clean, 8, alpha, None) == "has another transparency"
  assert budget.broken(clean, clean[:1], 8).startswith("is (1, 2, 3)")


# The command.


def test_stages_of_a_drill(tmp_path: Path) -> None:
  small, full = (
    list(
      __main__.tasks(
        __main__.PARTS, full=full, seed=0, workdir=tmp_path, memory=tmp_path / "memory"
      )
    )
    for full in (False, True)
  )
  assert [task[:2] for task in small] == [task[:2] for task in full]

  def total(part: str) -> int:
    return sum(task.wanted for task in full if task.part == part)

  assert total("kills") == total("two") == 100
  assert total("hostile") >= 10_000 and total("budget") >= 1_000_000
  assert all(task.wanted % task.batch == 0 for task in (*small, *full))


def test_a_broken_part_is_said_and_fails_the_drill(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  def tasks(*args: object, **options: object):
    def attempt(number: int) -> Try:
      if number == 2:
        raise RuntimeError("no disk")
      return Try("kills", "eudp", number, failures=("lost",) if number == 1 else ())

    yield __main__.Task("kills", "eudp", 3, 1, lambda: (attempt, lambda: None))

  monkeypatch.setattr(__main__, "tasks", tasks)
  monkeypatch.setattr(processes, "GROUP", processes.Group())
  assert __main__.main([f"--workdir={tmp_path}"]) == 1
  said = capsys.readouterr().out
  assert "| eudp | 2 of 3 | 1 | 1 |" in said and "RuntimeError: no disk" in said
  assert json.loads((tmp_path / "drill.json").read_text())["rows"][0]["failed"] == 1
  assert (tmp_path / "drill.md").read_text() in said


@pytest.mark.long
def test_a_killed_and_a_raced_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(processes, "GROUP", processes.Group())
  env = processes.environment(tmp_path)
  made = kills.attempt("purify", 0, seed=0, folder=tmp_path / "kills", env=env)
  assert made.failures == () and made.details["killed_at_s"]
  # What is broken is seen: a run that ends with other bytes than the undisturbed one.
  known = tmp_path / "kills" / "undisturbed.json"
  wanted = json.loads(known.read_text())
  wanted["digests"]["out/0.png"] = "0"
  known.write_text(json.dumps(wanted))
  made = kills.attempt("purify", 0, seed=0, folder=tmp_path / "kills", env=env)
  assert made.failures == ("1 files other bytes: out/0.png",)
  assert (tmp_path / "kills" / "failed" / "00000" / "out" / "0.png").exists()
  made = together.attempt("purify, purify", 0, seed=0, folder=tmp_path / "two", env=env)
  assert made.failures == ()


def _runs(pid: int) -> bool:
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state not in ("Z", "X")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_programs_are_killed_with_their_children(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(processes, "GROUP", processes.Group())
  (tmp_path / "parent.py").write_text(
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "open('pid', 'w').write(str(child.pid))\n"
    "time.sleep(60)\n"
  )
  env = processes.environment(tmp_path) | {"PYTHONPATH": str(tmp_path)}
  program = processes.Program(("parent",), tmp_path, env)
  while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
    assert program.wait(0.01) is None
  assert program.kill().code == -9
  child = int((tmp_path / "pid").read_text())
  deadline = time.monotonic() + 30
  while _runs(child):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert programs.KILLED.keys() == {"eudp", "protect", "purify", "impress"}
