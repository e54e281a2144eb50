"""`launch/gpu_run.sh`: its time, its errors, what it leaves, and on a CPU all of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from tests.launch.conftest import ROOT, StandIn

SCRIPT = ROOT / "launch" / "gpu_run.sh"
MOST_S = 570
# Answers as one that sees a card.
NVIDIA_SMI = "print('name, driver_version\\nNVIDIA H100 80GB HBM3, 580.159.04')"
# Plays the modules that take long; what it is told about each is in plan.json.
PYTHON = """\
import time
module = words[words.index("-m") + 1] if "-m" in words else ""
plan = json.load(open(here + "gpu.json")).get(module, {})
places = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
if module == "launch.gpu_checks":
  os.makedirs(places["out"], exist_ok=True)
  open(places["out"] + "/checks.json", "w").write('{"rows": []}')
if module == "experiments.benchmark":
  os.makedirs(places["workdir"] + "/logs", exist_ok=True)
  open(places["workdir"] + "/logs/ours.log", "w").write("a worker")
  open(places["workdir"] + "/bench.json", "w").write(json.dumps({"rows": plan.get("rows", [1])}))
  open(places["workdir"] + "/bench.md", "w").write("# tables")
if module:
  print(module, "said", os.environ.get("JAX_DEFAULT_MATMUL_PRECISION"), flush=True)
  print("XLA_FLAGS", os.environ.get("XLA_FLAGS"), flush=True)
  time.sleep(plan.get("seconds", 0))
  sys.exit(plan.get("code", 0))
os.execv(REAL, [REAL, *words])
"""


@pytest.fixture
def machine(stand_in: StandIn) -> StandIn:
  """A machine with a card, on which nothing takes long unless `gpu.json` says so."""
  stand_in.env.pop("XLA_FLAGS", None)
  stand_in.add("nvidia-smi", NVIDIA_SMI)
  stand_in.add("python3", f"REAL = {sys.executable!r}\n" + PYTHON)
  _plan(stand_in)
  return stand_in


def _plan(machine: StandIn, **modules: dict) -> None:
  named = {name.replace("__", "."): plan for name, plan in modules.items()}
  (machine.folder / "gpu.json").write_text(json.dumps(named))


def _run(machine: StandIn, *words: str) -> subprocess.CompletedProcess[str]:
  return machine.launch("gpu_run.sh", "--out=out", "--python=python3", *words)


def _limits(text: str) -> dict[str, int]:
  return {part: int(s) for part, s in re.findall(r"^(\w+) +(\d+) s  ", text, re.MULTILINE)}


def _modules(machine: StandIn) -> list[str]:
  calls = [call for call in machine.calls() if call[0] == "python3" and "-m" in call]
  return [call[call.index("-m") + 1] for call in calls]


def test_the_parts_fit_into_the_time(stand_in: StandIn) -> None:
  limits = _limits(stand_in.launch("gpu_run.sh", "--out=out", "--dry_run").stdout)
  assert set(limits) == {"prepare", "checks", "tests", "race", "pack", "together"}
  together = limits.pop("together")
  assert sum(limits.values()) == together <= MOST_S
  assert limits["checks"] + limits["tests"] <= 170 and limits["race"] <= 360


def test_each_command_ends_before_its_limit(stand_in: StandIn) -> None:
  """`timeout` stops it; what knows its time ends by itself before that."""
  done = stand_in.launch("gpu_run.sh", "--out=out", "--dry_run")
  limits = _limits(done.stdout)
  found = re.findall(r"^timeout --kill-after=(\d+) (\d+) (.*)$", done.stdout, re.MULTILINE)
  assert len(found) == 3
  for part, (more, seconds, words) in zip(("checks", "tests", "race"), found):
    assert int(more) + int(seconds) < limits[part]
    own = re.search(r"--seconds=(\d+)", words)
    assert own is None or int(own[1]) < int(seconds)


def test_what_is_around_the_parts_has_its_time_too(stand_in: StandIn) -> None:
  """The wheels have what nvidia-smi leaves: 20 s at least, if it takes all of its own."""
  limits = _limits(stand_in.launch("gpu_run.sh", "--out=out", "--dry_run").stdout)
  scripts = (ROOT / "launch" / "common.sh").read_text() + SCRIPT.read_text()
  (asking,) = re.findall(r"timeout (\d+) nvidia-smi", scripts)
  (versions,) = re.findall(r'timeout (\d+) "\$python" -c "\$versions"', scripts)
  (kept,) = re.findall(r'"\$work/site" \$\(\(prepare_s - (\d+) - SECONDS\)\)', scripts)
  assert int(asking) >= 15 and int(versions) < int(kept)
  assert limits["prepare"] - int(kept) - int(asking) >= 20
  assert 'timeout "$((pack_s - 5))" tar' in scripts


def test_the_race_has_what_the_other_parts_leave(machine: StandIn) -> None:
  def seconds(*words: str) -> int:
    done = _run(machine, *words)
    assert done.returncode == 0, done.stderr
    (call,) = [call for call in machine.calls()[-2:] if "experiments.benchmark" in call]
    return int(next(word for word in call if word.startswith("--seconds=")).split("=")[1])

  dry = _run(machine, "--dry_run").stdout
  limits = _limits(dry)
  assert limits["race"] >= 340 and f"--seconds={limits['race'] - 5}" in dry
  # Here checks and tests end at once.
  assert MOST_S - limits["pack"] - 40 < seconds() <= MOST_S - limits["pack"] - 5
  assert seconds("--race_s=100") == 95


@pytest.mark.parametrize(("part", "count"), [("checks", 2), ("race", 1), ("all", 3)])
def test_one_part_alone(part: str, count: int, stand_in: StandIn) -> None:
  done = stand_in.launch("gpu_run.sh", "--out=out", f"--part={part}", "--dry_run")
  assert done.returncode == 0 and done.stdout.count("timeout") == count
  assert ("experiments.benchmark --config=gpu" in done.stdout) == (part != "checks")


def test_the_race_gets_its_rows_and_its_peer(stand_in: StandIn) -> None:
  words = ("--part=race", "--only=a,b", "--peer_python=/opt/python", "--dry_run")
  said = stand_in.launch("gpu_run.sh", "--out=out", *words).stdout
  assert "--only=a,b" in said and "--peer_python=/opt/python" in said


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "--out is missing"),
    (("--out=x", "--part=half"), "--part=half: known are checks, race, all"),
    (("--out=x", "--race_s=400"), "the parts may take 630 s together: at most 570"),
    (("--out=x", "--checks_s=500"), "the parts may take 620 s together: at most 570"),
    (("--out=x", "--tests_s=5"), "--tests_s=5 is no whole number of at least 10"),
    (("--out=x", "more"), "unexpected argument more"),
  ],
)
def test_wrong_arguments(words: tuple[str, ...], message: str, stand_in: StandIn) -> None:
  done = stand_in.launch("gpu_run.sh", *words)
  assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
  assert stand_in.calls() == []


@pytest.mark.parametrize("answer", [None, "print('No devices were found'); sys.exit(6)"])
def test_without_a_gpu_it_says_so_and_does_nothing(answer: str | None, stand_in: StandIn) -> None:
  if answer is None:
    # A PATH without the real program, should this machine have one.
    for tool in ("bash", "dirname", "cat", "timeout"):
      (stand_in.programs / tool).symlink_to(shutil.which(tool))
    stand_in.env["PATH"] = str(stand_in.programs)
  else:
    stand_in.add("nvidia-smi", answer)
  done = stand_in.launch("gpu_run.sh", "--out=out")
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: ") and "GPU" in last and "--smoke" in last
  assert not (stand_in.folder / "out").exists()


def test_nvidia_smi_without_an_answer_does_not_end_the_run(machine: StandIn) -> None:
  """On a fresh machine it first loads the driver; jax finds out what is there."""
  # What `timeout` answers when its time is over.
  machine.add("nvidia-smi", "sys.exit(124)")
  done = _run(machine, "--part=checks")
  assert done.returncode == 0, done.stderr
  assert "unknown card" in (machine.folder / "out" / "environment.txt").read_text()


def test_results_name_the_commit_or_a_warning_says_that_they_cannot(machine: StandIn) -> None:
  machine.add("git", "sys.exit(128)")
  environment = machine.folder / "out" / "environment.txt"
  machine.env.pop("UDP_JAX_COMMIT", None)
  done = _run(machine, "--part=checks")
  assert "warning: THE COMMIT IS UNKNOWN" in done.stderr
  assert "commit unknown\n" in environment.read_text()
  machine.env["UDP_JAX_COMMIT"] = "abc123"
  done = _run(machine, "--part=checks")
  assert "warning" not in done.stderr and "commit abc123\n" in environment.read_text()


def test_the_tests_that_it_runs_exist(stand_in: StandIn) -> None:
  """Under their names and with its own options, none of them left out for a mark."""
  said = stand_in.launch("gpu_run.sh", "--out=out", "--dry_run").stdout
  (words,) = [shlex.split(line) for line in said.splitlines() if " -m pytest " in line]
  options = words[words.index("pytest") + 1 :]
  chosen = [word for word in options if word.startswith("tests/")]
  assert len(chosen) >= 15
  for option in ("-n", "--junitxml"):  # Collecting needs no workers and leaves no file.
    place = next(i for i, word in enumerate(options) if word.startswith(option))
    del options[place : place + (2 if options[place] == "-n" else 1)]
  found = subprocess.run(
    [sys.executable, "-m", "pytest", *options, "--collect-only", "-n0", "--verbosity=-1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert found.returncode == 0, found.stdout + found.stderr
  assert "deselected" not in found.stdout
  collected = re.findall(r"^(tests/\S+)$", found.stdout, re.MULTILINE)
  assert {name for name in chosen if not any(one.startswith(name) for one in collected)} == set()


def test_a_whole_run_leaves_few_files(machine: StandIn) -> None:
  done = _run(machine)
  assert done.returncode == 0, done.stderr
  out = machine.folder / "out"
  assert sorted(path.name for path in out.iterdir()) == [
    *("bench.json", "bench.md", "checks.json", "environment.txt"),
    *("logs.tar.gz", "summary.txt"),
  ]
  assert _modules(machine)[-3:] == ["launch.gpu_checks", "pytest", "experiments.benchmark"]
  assert "NVIDIA H100 80GB HBM3" in (out / "environment.txt").read_text()
  with tarfile.open(out / "logs.tar.gz") as logs:
    assert {"logs/checks.log", "logs/tests.log", "logs/race.log", "logs/bench/ours.log"} <= {
      *logs.getnames()
    }
  said = done.stdout
  # Float32 as float32 for the tests, the card's own default for what is measured.
  assert "pytest said highest\nXLA_FLAGS --xla_gpu_autotune_level=0\n" in said
  assert "experiments.benchmark said None\nXLA_FLAGS None\n" in said
  assert [line.split()[0] for line in (out / "summary.txt").read_text().splitlines()] == [
    *("checks", "tests", "race"),
  ]


def test_a_part_that_fails_or_hangs_leaves_time_for_the_next(machine: StandIn) -> None:
  _plan(machine, launch__gpu_checks={"seconds": 60}, pytest={"code": 3})
  started = time.monotonic()
  done = _run(machine, "--checks_s=10")
  assert done.returncode == 1 and time.monotonic() - started < 20
  assert done.stderr.splitlines()[-1] == "failed: checks tests"
  checks, tests, race = (machine.folder / "out" / "summary.txt").read_text().splitlines()
  assert "of  10 s  stopped at its limit" in checks and int(checks.split()[1]) <= 10
  assert "exit code 3" in tests and "exit code 0" in race
  # What it wrote until then is there.
  assert (machine.folder / "out" / "checks.json").exists()


def test_a_race_without_rows_has_failed(machine: StandIn) -> None:
  _plan(machine, experiments__benchmark={"rows": []})
  done = _run(machine, "--part=race")
  assert done.returncode == 1 and done.stderr.splitlines()[-1] == "failed: race without rows"


def test_sigterm_keeps_what_there_is(machine: StandIn) -> None:
  _plan(machine, experiments__benchmark={"seconds": 60})
  process = subprocess.Popen(
    ["bash", str(SCRIPT), "--out=out", "--python=python3", "--part=race"],
    env=machine.env,
    cwd=machine.folder,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert process.stdout is not None
  assert any("experiments.benchmark said" in line for line in process.stdout)
  process.terminate()
  assert process.wait(20) == 143
  process.stdout.close()
  assert (machine.folder / "out" / "bench.json").exists()


def test_a_second_call_goes_on_with_the_race_and_forgets_old_results(machine: StandIn) -> None:
  assert _run(machine).returncode == 0
  work, out = machine.folder / "out.work", machine.folder / "out"
  (work / "bench" / "xla").mkdir()
  assert _run(machine, "--part=checks").returncode == 0
  assert (work / "bench" / "xla").is_dir()
  (work / "checks" / "checks.json").write_text("old")
  assert _run(machine, "--part=race").returncode == 0
  assert not (out / "checks.json").exists() and (out / "bench.json").exists()


def test_wheels_come_before_what_the_machine_has(machine: StandIn) -> None:
  wheels = machine.folder / "wheels"
  wheels.mkdir()
  with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("carried.py", "")
    folder = "carried-1.0.dist-info"
    wheel.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
    wheel.writestr(
      f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
    )
    wheel.writestr(f"{folder}/RECORD", "")
  # Here pip is the real one.
  machine.add(
    "python3",
    f"REAL = {sys.executable!r}\nif 'pip' in words: os.execv(REAL, [REAL, *words])\n" + PYTHON,
  )
  done = _run(machine, "--part=race", "--wheels=wheels")
  assert done.returncode == 0, done.stderr
  site = machine.folder / "out.work" / "site"
  assert (site / "carried.py").exists()
  assert f"PYTHONPATH={ROOT}:{site}" in _run(machine, "--wheels=wheels", "--dry_run").stdout
  done = _run(machine, "--wheels=nowhere")
  assert done.returncode == 2 and "nowhere: no wheels in it" in done.stderr


def test_every_wheel_is_pinned_and_has_a_reason() -> None:
  lines = (ROOT / "launch" / "gpu_wheels.txt").read_text().splitlines()
  packages = [line for line in lines if line and not line.startswith("#")]
  assert len(packages) == 3
  assert all(re.fullmatch(r"[\w.-]+==[\d.]+ +# \S.*", line) for line in packages)


@pytest.mark.slow
def test_every_part_works_on_a_cpu(stand_in: StandIn, process_environment: dict[str, str]) -> None:
  """Of the race the rows that have no peer; the others: tests/experiments."""
  out = stand_in.folder / "out"
  done = subprocess.run(
    [
      *("bash", str(SCRIPT), f"--out={out}", "--smoke", f"--python={sys.executable}"),
      *("--only=cifar_ours,sd_ours", "--checks_s=200", "--tests_s=50", "--race_s=255"),
    ],
    env=process_environment,
    cwd=stand_in.folder,
    capture_output=True,
    text=True,
    timeout=MOST_S,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "no GPU: a smoke run" in (out / "environment.txt").read_text()
  checks = json.loads((out / "checks.json").read_text())
  assert checks["header"]["smoke"] and checks["header"]["hardware"]["backend"] == "cpu"
  found = {(row["check"], row["name"]): row["passes"] for row in checks["rows"]}
  for mode in ("highest", "tf32", "bf16"):
    assert found["goldens", f"smoke {mode}"] is True
  assert found["repeat", "deterministic"] is True
  assert found["probe", "bfloat16 64x64 heads of 40"] is None
  rows = json.loads((out / "bench.json").read_text())["rows"]
  assert [row["work"] for row in rows] == ["round", "max", "min", "max"]
  assert all(row["median_s"] > 0 for row in rows)
  assert len(list(out.iterdir())) <= 8
  with tarfile.open(out / "logs.tar.gz") as logs:
    assert "logs/repeat-d1.log" in logs.getnames()
    text = logs.extractfile("logs/tests.log")
    assert text is not None and b" PASSED tests/ops/test_linear.py::" in text.read()
    assert "logs/tests.xml" in logs.getnames()
