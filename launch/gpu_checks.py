"""Checks on an NVIDIA GPU what only one can tell: attention by cuDNN, known values, repeatability.

  python -m launch.gpu_checks --out=runs/gpu

probe    cuDNN's attention as models call it, value and gradients, against XLA's form in float32, by
         dtype, head size and lengths. It passes unless cuDNN fails, or errs by more than 2e-2, on
         what `ops.attention.cudnn_refusal` lets pass. What that refuses is tried too, and noted.
goldens  outputs and gradients of the parts in `launch.gpu_goldens` against known values of a CPU,
         in float32, TF32 and bfloat16, each with its own tolerance. A "note" says where an error is
         too small for the rounding of its mode: the setting did nothing.
repeat   five rounds of a small UDP run, twice: equal bit for bit with --deterministic, which is
         checked, and without it, which is only noted

OUT/checks.json is written after every check: {"header", "rows"}; a row has "check", "name",
"passes" (null if only noted), "seconds" and the check's own numbers. Rows come in the order in
which they are known. A check that does not fit into --seconds any more is a row that does not pass,
with "left_out". Exit code 0 if all pass, else 1.
--smoke runs everything at a small size on any machine; cuDNN then refuses everything. Without a GPU
and without --smoke the exit code is 2.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.runtime import files, processes

CHECKS = ("probe", "goldens", "repeat")
# Relative error of cuDNN's attention, of the value and of each gradient.
_TOLERANCE = 2e-2
# Stable Diffusion 1 has 40, 80 and 160, SDXL 64, the CIFAR-10 U-Net 256. No config uses float16.
_HEAD_SIZES = {"bfloat16": (40, 64, 80, 160, 256), "float16": (40, 160)}
# (queries, keys): short, to 77 words of text, and long.
_LENGTHS = ((64, 64), (256, 77), (4096, 4096))
_HEADS = 2
# Words for the repeated run: 64 pictures at 32x32 and 0.7 M parameters. The pictures are hashes, as
# the built-in ones need scikit-image and scikit-learn.
_PICTURES = 72
_FIVE_ROUNDS = (
  *("--config=cifar10_small", "--config.num_rounds=5", "--config.data.classes=()"),
  *(f"--config.data.limit={_PICTURES}", "--config.data.holdout=8.0"),
  *("--config.protections.udp.train_steps=8", "--config.protections.udp.perturb_steps=2"),
)
_SMALLEST = ("--config=cifar10_small:smoke", "--config.num_rounds=2")
# Programs that compile at the same time: from the start all goldens, which take longest.
_THREADS = 12
_LATE: dict[str, Any] = {"passes": False, "left_out": "no time left"}

_OUT = flags.DEFINE_string("out", None, "Folder for checks.json.")
_CHECKS = flags.DEFINE_list("checks", list(CHECKS), f"Some of {', '.join(CHECKS)}.")
_SECONDS = flags.DEFINE_float(
  "seconds", 120.0, "Time for all checks together; what does not fit is left out and fails."
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Small sizes, on any machine: shows that it works.")


class Check(NamedTuple):
  """A check that compiles first, beside others, and then runs alone.

  Attributes:
    check: "probe" or "goldens".
    name: what is checked.
    compile: returns what `run` takes; called in a thread of its own.
    run: returns the row's numbers with "passes".
  """

  check: str
  name: str
  compile: Callable[[], Any]
  run: Callable[[Any], dict[str, Any]]


class Report:
  """The rows so far, written to a file after each; also prints them.

  Args:
    path: the file.
    seconds: time for all checks, from now on.
  """

  def __init__(self, path: Path, seconds: float):
    self._path, self._started, self._seconds = path, time.monotonic(), seconds
    self.content: dict[str, Any] = {"header": {}, "rows": []}

  @property
  def left(self) -> float:
    """Seconds that are left."""
    return self._seconds - (time.monotonic() - self._started)

  @property
  def passes(self) -> bool:
    """Whether no row fails."""
    return all(row["passes"] is not False for row in self.content["rows"])

  def add(self, check: str, name: str, **numbers: Any) -> None:
    """Adds a row, prints it and writes the file."""
    self.content["rows"].append({"check": check, "name": name, **numbers})
    verdict = {True: "ok", False: "FAILED", None: "noted"}[numbers["passes"]]
    shown = {k: v for k, v in numbers.items() if k not in ("passes", "seconds", "compared")}
    text = "  ".join(f"{key} {_short(value)}" for key, value in shown.items() if value != "")
    print(f"{verdict:6}  {check:7}  {name:28}  {text}", flush=True)
    self.write()

  def write(self) -> None:
    """Writes the file."""
    files.write_json(self._path, self.content)


def _short(value: Any) -> str:
  return f"{value:.2g}" if isinstance(value, float) else str(value)


def _finite(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def probes(smoke: bool) -> Iterator[Check]:
  """Yields a check of cuDNN's attention for each of `probed`."""
  for sizes in probed(smoke):
    yield _probe(*sizes)


def probed(smoke: bool) -> Iterator[tuple[str, int, int, int]]:
  """Yields dtype, head size, number of queries and number of keys of each probe."""
  count = 1 if smoke else None
  for dtype, head_sizes in _HEAD_SIZES.items():
    for head_size in head_sizes[:count]:
      for queries, keys in _LENGTHS[:count]:
        yield dtype, head_size, queries, keys


def with_gradients(form: str) -> Any:
  """Returns attention by "cudnn", as models call it, or by "xla", jitted.

  Returns:
    (query, key, value, cotangent of the output) -> (output, gradients by query, key and value).
  """
  import jax

  from udp_jax.ops import attention

  by_xla = partial(jax.nn.dot_product_attention, implementation="xla")
  forms: dict[str, Any] = {"cudnn": attention.cudnn_attention, "xla": by_xla}
  attend = forms[form]

  def run(query: jax.Array, key: jax.Array, value: jax.Array, cotangent: jax.Array) -> Any:
    with jax.default_matmul_precision("highest"):
      out, pull = jax.vjp(attend, query, key, value)
      return out, *pull(cotangent)

  return jax.jit(run)


def _probe(dtype: str, head_size: int, queries: int, keys: int) -> Check:
  import jax
  import jax.numpy as jnp

  from launch import gpu_goldens
  from udp_jax.ops import attention

  shapes = [(1, length, _HEADS, head_size) for length in (queries, keys, keys, queries)]
  given = [gpu_goldens.uniform(f"probe/{i}", shape) for i, shape in enumerate(shapes)]
  # Both forms get the same rounded numbers, so that only their own errors differ.
  narrow = [value.astype(jnp.dtype(dtype)) for value in given]
  wide = [value.astype(np.float32) for value in narrow]

  def compiled(form: str, arrays: list[np.ndarray]) -> Callable[..., Any]:
    return with_gradients(form).lower(*arrays).compile()

  def compile_both() -> tuple[Callable[..., Any] | str, Callable[..., Any]]:
    right = compiled("xla", wide)
    try:
      return compiled("cudnn", narrow), right
    except (RuntimeError, ValueError, NotImplementedError) as error:
      return _first_line(error), right

  def run(programs: tuple[Any, Any]) -> dict[str, Any]:
    cudnn, right = programs
    refused = attention.cudnn_refusal(
      attention.local_gpu(), dtype=jnp.dtype(dtype), head_size=head_size, key_length=keys
    )
    error, failure = None, cudnn if isinstance(cudnn, str) else ""
    if not failure:
      try:
        pairs = zip(jax.device_get(cudnn(*narrow)), jax.device_get(right(*wide)))
        error = max(_distance(found, known) for found, known in pairs)
      except RuntimeError as raised:
        failure = _first_line(raised)
    works = error is not None and error <= _TOLERANCE
    return {
      "passes": works if not refused else None,
      "taken": not refused,
      "works": works,
      "error": None if error is None else _finite(error),
      "refused": refused,
      "failure": failure,
    }

  return Check("probe", f"{dtype} {queries}x{keys} heads of {head_size}", compile_both, run)


def _distance(found: Any, known: Any) -> float:
  found, known = np.asarray(found, np.float64), np.asarray(known, np.float64)
  return float(np.linalg.norm(found - known) / np.linalg.norm(known))


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def goldens(smoke: bool) -> Iterator[Check]:
  """Yields a check of each part in each mode, those of the largest part first."""
  from launch import gpu_goldens

  for name in ("smoke",) if smoke else gpu_goldens.names():
    for mode in gpu_goldens.MODES:
      yield _golden(name, mode)


def _golden(name: str, mode: str) -> Check:
  import jax

  from launch import gpu_goldens
  from udp_jax.ops import attention

  rules = gpu_goldens.MODES[mode]

  def compile_part() -> tuple[Callable[..., Any], gpu_goldens.Prepared]:
    made = gpu_goldens.prepare(name, rules.settings)
    return made.run.lower(*made[1:]).compile(), made

  def run(prepared: tuple[Callable[..., Any], gpu_goldens.Prepared]) -> dict[str, Any]:
    program, made = prepared
    found = gpu_goldens.sketches(*jax.device_get(program(*made[1:])))
    lines = gpu_goldens.compare(found, gpu_goldens.known(name), rules)
    worst = max(lines, key=lambda line: line.error / line.tolerance)
    return {
      "passes": all(line.passes for line in lines),
      "worst": worst.what,
      "error": _finite(worst.error),
      "tolerance": worst.tolerance,
      "note": gpu_goldens.unrounded(lines, rules, attention.local_gpu()),
      "compared": [
        line._asdict() | {"error": _finite(line.error), "cosine": _finite(line.cosine or 0.0)}
        for line in lines
      ],
    }

  return Check("goldens", f"{name} {mode}", compile_part, run)


def run_checks(
  checks: Sequence[Check], report: Report, meanwhile: Callable[[], None] = lambda: None
) -> None:
  """Compiles all checks side by side, and runs each alone as soon as it is compiled.

  Args:
    checks: what to check; those that compile longest first.
    report: gets a row for each, in the order in which they end.
    meanwhile: called once when every compilation waits for its turn.
  """
  started = time.monotonic()
  pool = ThreadPoolExecutor(_THREADS)
  compiled: queue.SimpleQueue[tuple[Check, Future]] = queue.SimpleQueue()

  def ready(check: Check, done: Future) -> None:
    compiled.put((check, done))

  for check in checks:
    pool.submit(check.compile).add_done_callback(partial(ready, check))
  meanwhile()
  pending = list(checks)
  while pending:
    try:
      check, future = compiled.get(timeout=max(0.0, report.left))
      numbers = _one(check, future, report)
    except queue.Empty:
      check, numbers = pending[0], _LATE
    pending.remove(check)
    report.add(check.check, check.name, **numbers, seconds=round(time.monotonic() - started, 2))
  # What still compiles would keep the process beyond its time.
  pool.shutdown(wait=False, cancel_futures=True)


def _one(check: Check, future: Future, report: Report) -> dict[str, Any]:
  try:
    program = future.result()
    return check.run(program) if report.left > 0 else _LATE
  except Exception as error:  # One that breaks must not hide the others.
    return {"passes": False, "failure": f"{type(error).__name__}: {_first_line(error)}"}


class Repeats:
  """Runs of one command in processes of their own, beside the other checks.

  Args:
    folder: for their work folders, emptied first.
    smoke: whether to run at the smallest size.
  """

  # With --deterministic the second run has the first one's choices of kernels (launch/README.md),
  # so it starts later; without, both start at once.
  PAIRS = {"deterministic": ("d1", "d2"), "default": ("p1", "p2")}

  def __init__(self, folder: Path, smoke: bool):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    self._folder, self._smoke = folder, smoke
    self._words = words_of_run(folder / "pictures.npz", smoke)
    self._running: list[subprocess.Popen] = []
    self._stopped = False
    self._failures: dict[str, str] = {}
    chains = [self.PAIRS["deterministic"], *((name,) for name in self.PAIRS["default"])]
    if smoke:  # Side by side they would only be in each other's way.
      chains = [sum(self.PAIRS.values(), ())]
    self._threads = [threading.Thread(target=self._chain, args=(chain,)) for chain in chains]
    for thread in self._threads:
      thread.start()

  def _chain(self, names: Sequence[str]) -> None:
    for before, name in zip((None, *names), names):
      workdir = self._folder / name
      if before is not None and (self._folder / before / "autotune").is_dir():
        shutil.copytree(self._folder / before / "autotune", workdir / "autotune")
      self._run(name, workdir)

  def _run(self, name: str, workdir: Path) -> None:
    words = [sys.executable, "-m", "experiments.udp", *self._words, f"--workdir={workdir}"]
    words += ["--deterministic"] if name in self.PAIRS["deterministic"] else []
    environment = dict(os.environ)
    if not self._smoke:
      # A compilation cache of its own: a program from another run's would tell nothing.
      environment["JAX_COMPILATION_CACHE_DIR"] = str(self._folder / f"{name}.cache")
    with open(self._folder / f"{name}.log", "wb") as log:
      if self._stopped:
        return
      process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
      self._running.append(process)
      if code := process.wait():
        self._failures[name] = f"exit code {code}"

  def finish(self, report: Report) -> None:
    """Waits while there is time, stops what still runs, and adds a row for each pair."""
    for thread in self._threads:
      thread.join(max(0.0, report.left))
    late = any(thread.is_alive() for thread in self._threads)
    self._stopped = True
    for process in self._running:
      if process.poll() is None:
        process.kill()
    for thread in self._threads:
      thread.join()
    for pair, names in self.PAIRS.items():
      numbers: dict[str, Any]
      failed = {name: self._failures[name] for name in names if name in self._failures}
      if failed or not all(_losses(self._folder / name) for name in names):
        why = "no time left" if late else ""
        logs = " ".join(self._end_of(name) for name in failed)
        numbers = {"passes": False, "left_out": why, "failure": "" if late else logs}
      else:
        numbers = compare_runs(*(self._folder / name for name in names))
        numbers["passes"] = numbers["equal"] if pair == "deterministic" else None
      report.add("repeat", pair, **numbers)

  def _end_of(self, name: str) -> str:
    lines = (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return f"{name}: {self._failures[name]}: {lines[-1] if lines else ''}"[:300]


def words_of_run(pictures: Path, smoke: bool) -> list[str]:
  """Writes the pictures of the repeated run to a file; returns the words for `experiments.udp`."""
  from launch import gpu_goldens

  levels = (gpu_goldens.uniform("repeat", (_PICTURES, 32, 32, 3)) + 1) * np.float32(127.5)
  np.savez(pictures, images=np.round(levels).astype(np.uint8))
  words = ["--noevaluate", "--noprogress", "--config.rows=('udp',)"]
  return [*words, *(_SMALLEST if smoke else _FIVE_ROUNDS), f"--config.data.source=npz:{pictures}"]


def _losses(workdir: Path) -> list[dict[str, float]]:
  """Returns what each round of a run measured, without times."""
  path = workdir / "stages" / "protect_udp" / "metrics.jsonl"
  if not path.exists():
    return []
  rounds = [json.loads(line) for line in path.read_text().splitlines()]
  kept = ("train_loss", "max_loss", "delta_rms_255")
  return [{key: value for key, value in line.items() if key in kept} for line in rounds]


def compare_runs(one: Path, other: Path) -> dict[str, Any]:
  """Compares the pictures and losses of two work folders of the same run.

  Returns:
    "equal": whether both agree bit for bit; "differing": share of 8-bit values that differ;
    "losses": the largest relative difference of a round's loss.
  """
  from udp_jax.data import manifest

  first, second = (manifest.read_folder(place / "protected" / "udp")[0] for place in (one, other))
  differing = float(np.mean(first.images != second.images))
  found, known = ([list(line.values()) for line in _losses(place)] for place in (one, other))
  a, b = np.array(found, np.float64), np.array(known, np.float64)
  losses = float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-30)))
  equal = differing == 0 and found == known and first.names == second.names
  return {"equal": equal, "differing": differing, "losses": losses}


def main(argv: Sequence[str]) -> int:
  """Runs the checks that the flags ask for; returns the exit code."""
  del argv
  if not _OUT.value:
    raise ConfigError("--out is needed: the folder for checks.json")
  unknown = set(_CHECKS.value) - set(CHECKS)
  if unknown:
    raise ConfigError(f"--checks: no {', '.join(sorted(unknown))}; known: {', '.join(CHECKS)}")
  # Several processes share the GPU; by default each would take three quarters of its memory.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  folder = Path(_OUT.value).absolute()
  report = Report(folder / "checks.json", _SECONDS.value)
  import jax

  from udp_jax.runtime import provenance

  if jax.default_backend() != "gpu" and not _SMOKE.value:
    raise MissingDataError("no GPU that jax can use is here; --smoke runs the checks without one")
  from udp_jax.ops import attention

  report.content["header"] = {
    "command": provenance.command(),
    "commit": provenance.commit(),
    "hardware": provenance.hardware(),
    "versions": provenance.versions(),
    "gpu": str(attention.local_gpu()),
    "smoke": _SMOKE.value,
  }
  report.write()
  made = {"goldens": goldens, "probe": probes}
  checks = [one for name in made if name in _CHECKS.value for one in made[name](_SMOKE.value)]
  started: list[Repeats] = []

  def repeat() -> None:
    if "repeat" in _CHECKS.value:
      started.append(Repeats(folder / "repeat", _SMOKE.value))

  run_checks(checks, report, repeat)
  for repeats in started:
    repeats.finish(report)
  rows = report.content["rows"]
  failed = [f"{row['check']} {row['name']}" for row in rows if row["passes"] is False]
  print(f"{len(rows)} checks, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
  code = 0 if report.passes else 1
  if any(row.get("left_out") for row in rows):
    # Compilations that nobody waits for any more would hold the process.
    sys.stdout.flush()
    processes.exit_now(code)
  return code


if __name__ == "__main__":
  _cli.run(main, several=False)
