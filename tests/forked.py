"""Starts entry points from a process that has imported the libraries they need.

`python -m experiments.NAME` takes 2 s of imports, and the tests run some hundred. `Forked` hands
each to a server, which forks: the child has the arguments, the environment, the standard files and
the exit code of a process of its own, and imports this repository's modules itself. The server has
used none of the libraries: jax starts its threads and XLA reads its flags in the child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

LIBRARIES = (
  "absl.app",
  "flax.linen",
  "jax",
  "ml_collections.config_flags",
  "optax",
  "orbax.checkpoint",
  "PIL.Image",
  "safetensors.numpy",
  "tokenizers",
  "tqdm",
)


class Forked:
  """A server for runs of modules, one at a time.

  Args:
    environment: of the runs.
    cwd: folder of the runs.
  """

  def __init__(self, environment: dict[str, str], cwd: Path):
    # What the entry points would start again for (udp_jax/commands/startup.py).
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    self._server = subprocess.Popen(
      [sys.executable, "-m", "tests.forked"],
      cwd=cwd,
      env=tunables | environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run(self, module: str, words: tuple[str, ...], timeout: int) -> subprocess.CompletedProcess:
    """As `subprocess.run` of `python -m MODULE WORDS`, its output captured as text.

    Raises:
      subprocess.TimeoutExpired: after `timeout` seconds; the run has been killed.
    """
    command = [sys.executable, "-m", module, *words]
    with tempfile.TemporaryDirectory() as folder:
      said = [Path(folder, name) for name in ("stdout", "stderr")]
      request = {"command": command, "said": list(map(str, said)), "timeout": timeout}
      assert self._server.stdin is not None and self._server.stdout is not None
      self._server.stdin.write(json.dumps(request) + "\n")
      self._server.stdin.flush()
      code = json.loads(self._server.stdout.readline())
      texts = [path.read_text() for path in said]
    if code is None:
      raise subprocess.TimeoutExpired(command, timeout, *texts)
    return subprocess.CompletedProcess(command, code, *texts)

  def close(self) -> None:
    """Ends the server."""
    assert self._server.stdin is not None
    self._server.stdin.close()
    self._server.wait()


def _serve() -> dict[str, Any]:
  """Forks for every request until there are no more; returns it in the child."""
  for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
      return request
    print(json.dumps(_exit_code(child, request["timeout"])), flush=True)
  sys.exit()


def _exit_code(child: int, timeout: int) -> int | None:
  """Waits for the child; None after `timeout` seconds, when it is killed."""
  expired = False

  def kill(*_: Any) -> None:
    nonlocal expired
    expired = True
    os.kill(child, signal.SIGKILL)

  signal.signal(signal.SIGALRM, kill)
  signal.alarm(timeout)
  _, status = os.waitpid(child, 0)
  signal.alarm(0)
  return None if expired else os.waitstatus_to_exitcode(status)


def _become(request: dict[str, Any]) -> None:
  """Gives this process the standard files and the arguments of the run."""
  for number, path in enumerate((os.devnull, *request["said"])):
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(file, number)
    os.close(file)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  sys.orig_argv[:] = request["command"]
  sys.argv[:] = request["command"][2:]


if __name__ == "__main__":
  for _name in LIBRARIES:
    importlib.import_module(_name)
  # Jax warns of forking because its threads would be missing; it has none yet.
  warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
  gc.freeze()
  _request = _serve()
  _become(_request)
  runpy.run_module(_request["command"][2], run_name="__main__", alter_sys=True)
