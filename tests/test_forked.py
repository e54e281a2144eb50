"""A forked run is told apart from a process of its own by nothing but its speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Forked

PROGRAM = """
import os, signal, sys, time
def fail():
  raise RuntimeError("a bug")
print(__name__, sys.argv[1:], sys.orig_argv[1:], sys.stdin.read(), "jax" in vars(), flush=True)
print(os.environ["MARK"], os.getcwd(), file=sys.stderr, flush=True)
what = sys.argv[1]
if what == "code":
  sys.exit(7)
elif what == "words":
  sys.exit("not like this")
elif what == "bug":
  fail()
elif what == "signal":
  os.kill(os.getpid(), signal.SIGTERM)
elif what == "at exit":
  import atexit
  atexit.register(print, "left")
elif what == "hang":
  time.sleep(60)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory):
  """A server whose runs see a folder with the modules of `tests` and `program`."""
  folder = tmp_path_factory.mktemp("forked")
  (folder / "program.py").write_text(PROGRAM)
  (folder / "tests").symlink_to(Path(__file__).parent)
  environment = os.environ | {"MARK": "a mark", "JAX_PLATFORMS": "cpu"}
  server = Forked(environment, folder)
  yield server, folder, environment
  server.close()


@pytest.mark.parametrize("what", ["nothing", "code", "words", "bug", "signal", "at exit"])
def test_like_a_process_of_its_own(forked, what: str) -> None:
  server, folder, environment = forked
  done = server.run("program", (what, "two words"), timeout=60)
  own = subprocess.run(
    [sys.executable, "-m", "program", what, "two words"],
    cwd=folder,
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.args) == (own.returncode, own.stdout, own.args)
  # The frames above the program's differ.
  assert done.stderr.splitlines()[0] == own.stderr.splitlines()[0]
  assert done.stderr.splitlines()[-1] == own.stderr.splitlines()[-1]


def test_a_run_that_hangs_is_killed(forked) -> None:
  server, *_ = forked
  with pytest.raises(subprocess.TimeoutExpired) as raised:
    server.run("program", ("hang",), timeout=1)
  assert "'hang'" in raised.value.output
  assert server.run("program", ("code",), timeout=60).returncode == 7


@pytest.mark.slow
def test_nothing_of_jax_has_started(forked) -> None:
  """Flags and threads are those of the run: neither may be made before the fork."""
  _, folder, environment = forked
  program = "import importlib, os, tests.forked as f\n"
  program += "for name in f.LIBRARIES: importlib.import_module(name)\n"
  program += "from jax._src import xla_bridge\n"
  program += "print(xla_bridge.backends_are_initialized(), len(os.listdir('/proc/self/task')))"
  if not Path("/proc/self/task").exists():
    pytest.skip("needs /proc")
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=folder,
    env=environment | {"OPENBLAS_NUM_THREADS": "1"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == ["False", "1"]
