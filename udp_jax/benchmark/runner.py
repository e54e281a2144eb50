"""Runs the tasks of a benchmark one by one and keeps bench.json and bench.md up to date."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from udp_jax.benchmark import plan, race, tables
from udp_jax.benchmark.models import diffusers_configs
from udp_jax.benchmark.plan import Contestant, Task
from udp_jax.benchmark.worker import OutOfTime, Worker, WorkerError
from udp_jax.errors import ConfigError, MissingDataError, UserError
from udp_jax.runtime import files, provenance, workdir

_TORCH_WORKER = Path(__file__).with_name("torch_worker.py")
# Also shown in the table.
NO_FLAX = "diffusers-Flax (last release 0.39.0) has no UNet2DModel, only Stable Diffusion's U-Net"


# Seconds that workers have for ending by themselves.
_PATIENCE = 2.0
# Seconds before the deadline that are kept for ending the workers and for writing the report.
_CLOSING = 4.0
# Seconds within which PyTorch must answer, where the races go on without it if it does not.
_PEER_STARTS = 90.0


def run(
  config: Any,
  workdir: Path,
  *,
  peer_python: str,
  only: str = "",
  deadline: float = math.inf,
  progress: bool = True,
) -> dict[str, Any]:
  """Measures the tasks that are missing in workdir/bench.json; returns its content.

  Args:
    config: settings, as in `experiments.configs.benchmark`.
    workdir: folder for bench.json, bench.md and logs/.
    peer_python: interpreter of the environment with torch and diffusers.
    only: regular expressions, with commas between them; tasks whose key contains none are skipped.
    deadline: time on `time.monotonic`'s clock by which to return. A task that is likely to take
      longer is left out, and one that does is given up; `left_out` of the result lists both.
    progress: whether to show a progress bar.

  Raises:
    ConfigError: the config cannot be used, or the workdir has another config, commit or machine.
    MissingDataError: PyTorch is needed, but `peer_python` does not have it. Races with an order
      (`config.races.order`) go on without it instead: `header["without_torch"]` of the result and
      the peers' rows say why.
    OutputError: the workdir cannot be written.
  """
  chosen = plan.tasks(config, only)
  bench = _Bench(config, workdir, peer_python)
  report = bench.report
  left = [task for task in chosen if task.key not in report["done"]]
  report.pop("left_out", None)
  bench.save()
  bench.pool.deadline = deadline - _CLOSING
  bar = tqdm(left, desc="benchmark", unit="task", disable=not progress or not left)
  try:
    for task in bar:
      bar.set_postfix_str(task.key)
      if reason := bench.attempt(task, left):
        # Only where something is left out: other reports have no such field.
        report.setdefault("left_out", []).append({"task": task.key, "reason": reason})
      else:
        report["done"].append(task.key)
      bench.save()
  finally:
    bench.pool.stop()
  bench.save()
  return report


class _Pool:
  """Workers by name, kept during one group of tasks."""

  def __init__(self, logs: Path):
    self.deadline = math.inf
    self._logs = logs
    self._group: Any = None
    self._workers: dict[str, Worker] = {}
    self._facts: dict[str, dict[str, Any]] = {}
    self._errors: dict[str, str] = {}

  def enter(self, group: Any) -> None:
    """Stops the workers of any other group."""
    if group != self._group:
      self.stop()
      self._group = group

  def start(self, name: str, command: list[str], environment: dict[str, str]) -> Worker:
    """Returns the worker of that name, and starts it if it does not run yet."""
    if name not in self._workers:
      log = self._logs / f"{re.sub(r'[^-.,=+_a-zA-Z0-9]+', '-', name)}.log"
      self._workers[name] = Worker(command, log, environment, self.deadline)
    return self._workers[name]

  def prepared(self, name: str, worker: Worker, **spec: Any) -> dict[str, Any]:
    """Prepares the worker once; returns its answer to that. Raises WorkerError."""
    if name in self._errors:
      raise WorkerError(self._errors[name])
    if name not in self._facts:
      try:
        self._facts[name] = worker.ask("prepare", **spec)
      except WorkerError as error:
        self._errors[name] = str(error)
        self._workers.pop(name).stop()
        raise
    return self._facts[name]

  def stop(self) -> None:
    """Ends all workers, all at the same time."""
    for worker in self._workers.values():
      worker.close()
    until = time.monotonic() + _PATIENCE
    for worker in self._workers.values():
      worker.stop(max(until - time.monotonic(), 0.0))
    self._workers, self._facts, self._errors = {}, {}, {}


class _Bench:
  """A benchmark: config, workdir and workers."""

  def __init__(self, config: Any, workdir: Path, peer_python: str):
    self.config, self.workdir = config, workdir
    self.pool = _Pool(workdir / "logs")
    self._peer_command = [peer_python, str(_TORCH_WORKER)]
    self._peer_python = peer_python
    self._device = "cpu"
    self._begun: set[tuple[Any, ...]] = set()
    # Why PyTorch takes no part, although the config asks for it.
    self._without_torch = ""
    self.report = self._open()

  def attempt(self, task: Task, left: list[Task]) -> str:
    """Measures one task, unless there is no time for it; returns why not, or ""."""
    needed, limit = self._expected(task), self.pool.deadline - time.monotonic()
    if needed >= limit:
      return f"no time left: it takes about {needed:.0f} s of {max(limit, 0):.0f}"
    try:
      self.do(task, left)
    except OutOfTime as end:
      return str(end)
    return ""

  def _expected(self, task: Task) -> float:
    """Seconds that a task is likely to take. The first race of a group prepares for all."""
    prepare = 0.0 if self._round(task) in self._begun else task.spec.get("prepare_s", 0.0)
    return prepare + task.spec.get("race_s", 0.0)

  def _round(self, task: Task) -> tuple[Any, ...]:
    return task.spec.get("race"), *plan.seat(task)

  def do(self, task: Task, left: list[Task]) -> None:
    """Measures one task and adds its rows to the report."""
    if task.section == "races":
      self.report["rows"] += self._race(task, left)
      return
    measure = getattr(self, f"_{task.section}")
    try:
      rows = measure(task)
    except WorkerError as error:
      rows = [{**task.spec, "reason": str(error)}]
    self.report[task.section] += rows

  def save(self) -> None:
    """Writes bench.json and bench.md, each whole or not at all."""
    files.write_json(self.workdir / "bench.json", self.report)
    workdir.mark(self.workdir)
    files.write_bytes(self.workdir / "bench.md", tables.markdown(self.report).encode())

  # The header.

  def _open(self) -> dict[str, Any]:
    try:
      self._check_peer()
    except MissingDataError as error:
      self._go_without_torch(error)
    path = self.workdir / "bench.json"
    config = json.loads(files.to_json(self.config.to_dict()))
    facts = self._facts()
    if not path.exists():
      header = {"title": self.config.title, "notice": self.config.notice, **facts}
      header |= {"command": provenance.command(), "config": config}
      header |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
      if self._without_torch:
        header["without_torch"] = self._without_torch
      header |= self._rates()
      rows: dict[str, Any] = {section: [] for section in plan.SECTIONS[1:]}
      return {"header": header, "rows": self._absent(), **rows, "done": []}
    report = files.read_json(path)
    old = report.get("header", {})
    now: dict[str, Any] = {**facts, "config": config}
    changed = [name for name in now if old.get(name) != now[name]]
    if changed:
      without = f" (now without PyTorch: {self._without_torch})" if self._without_torch else ""
      raise ConfigError(
        f"{path} was begun with another {' and '.join(changed)}{without}: one table is measured "
        "with one of each; choose another --workdir"
      )
    return report

  def _check_peer(self) -> None:
    if self.config.peers.torch and shutil.which(self._peer_python) is None:
      raise MissingDataError(
        f"no PyTorch to race against: {self._peer_python} is not there. `make bench` installs it; "
        "or give --peer_python=PATH of an environment with torch and diffusers, or race nobody: "
        "--config.peers.torch='()'"
      )

  def _go_without_torch(self, error: UserError) -> None:
    """Notes why PyTorch takes no part, or raises the error if the races have no order.

    Races with an order are for machines that are lent for minutes: ours are worth measuring alone.
    """
    if not self.config.races.order:
      raise error
    self._without_torch = str(error)

  def _with_torch(self) -> bool:
    return bool(self.config.peers.torch) and not self._without_torch

  def _facts(self) -> dict[str, Any]:
    """Commit, hardware, versions, threads: they must be the same for a whole table."""
    self.pool.enter("header")
    worker = self._jax("header")
    if self._with_torch() and self.config.races.start_together:
      # If it cannot be started, the request below says so.
      with contextlib.suppress(WorkerError):
        self._torch("header-torch")
    ours = worker.ask("info")
    versions, threads = ours["versions"], {"jax": ours["threads"]}
    hardware = ours["hardware"]
    if self.config.backend not in ("", hardware["backend"]):
      raise ConfigError(
        f"this config is for backend {self.config.backend!r}, but jax found only "
        f"{hardware['devices']} ({hardware['backend']})"
      )
    theirs = self._peer_facts(hardware) if self._with_torch() else {}
    if theirs:
      versions |= {"torch": theirs["version"], "diffusers (torch)": theirs["diffusers"]}
      versions |= theirs.get("libraries", {})
      threads["torch"] = theirs["threads"]
    facts = {"commit": provenance.commit(), "hardware": hardware}
    return facts | {"versions": versions, "threads": threads}

  def _peer_facts(self, hardware: dict[str, str]) -> dict[str, Any]:
    """What PyTorch says of itself, on the device that ours use; {} if the races go on without."""
    if hardware["backend"] not in ("cpu", "gpu"):
      raise ConfigError(
        "the PyTorch contestants run on a CPU or a GPU: set JAX_PLATFORMS=cpu, or race nobody: "
        "--config.peers.torch='()'"
      )
    self._device = "cuda" if hardware["backend"] == "gpu" else "cpu"
    try:
      return self._peer_on(hardware["devices"])
    except (ConfigError, MissingDataError) as error:
      self._go_without_torch(error)
      return {}

  def _peer_on(self, devices: str) -> dict[str, Any]:
    try:
      theirs = self._ask_torch("info")
    except WorkerError as error:
      raise MissingDataError(
        f"{self._peer_python} cannot run the PyTorch contestant ({error}); `make bench` makes an "
        "environment that can, --peer_python=PATH names another"
      ) from error
    # Jax names all devices after their number, "1 x NVIDIA H100 80GB HBM3".
    if theirs.get("gpu", "") not in devices:
      raise ConfigError(
        f"PyTorch would run on another device, {theirs['gpu']}, than jax: {devices}"
      )
    return theirs

  def _ask_torch(self, do: str, **arguments: Any) -> dict[str, Any]:
    """Asks PyTorch for what the header has of it."""
    if self.config.races.order:
      arguments["timeout"] = _PEER_STARTS
    return self._torch("header-torch").ask(do, device=self._device, **arguments)

  def _rates(self) -> dict[str, Any]:
    """Best rates of this machine by framework: of matrix products, and if asked for of copies.

    Where races have an order, what fails is listed as `unmeasured`, and the races follow.
    """
    asks: dict[str, Any] = {"jax": self._jax("header").ask}
    if self._with_torch():
      asks["torch"] = self._ask_torch
    size, kinds, mib = self.config.matmul_size, self.config.matmul_rates, self.config.copy_mib
    wanted = [("matmul", "matmul_gflops", "gflops", {"size": size, "rates": kinds})]
    if mib:
      wanted.append(("copy", "copy_gbs", "gbs", {"mib": mib}))
    found: dict[str, Any] = {field: {} for _, field, _, _ in wanted}
    for name, ask in asks.items():
      for do, field, rate, arguments in wanted:
        try:
          found[field][name] = ask(do, **arguments)[rate]
        except WorkerError as error:
          if not self.config.races.order:
            raise
          found.setdefault("unmeasured", {})[f"{do} of {name}"] = str(error)
    return found

  def _absent(self) -> list[dict[str, Any]]:
    if self.config.races.order:
      return []  # Only what was chosen.
    row = {"work": "round", "batch": None, "dtype": None, "framework": "diffusers_flax"}
    return [
      tables.race_row({**row, "model": model, "variant": "", "reason": NO_FLAX})
      for model in self.config.models
    ]

  # Workers.

  def _jax(self, name: str, **environment: str) -> Worker:
    # Compile times must not come from a cache; tasks that measure the cache turn it on.
    base = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if self.config.cache:
      folder = str((self.workdir / "xla").absolute())
      base = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": folder}
    # Else the first process on a GPU would leave a quarter of its memory to the others.
    base["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    command = [sys.executable, "-m", "udp_jax.benchmark.jax_worker"]
    return self.pool.start(name, command, base | environment)

  def _torch(self, name: str) -> Worker:
    # Kernels that an earlier run compiled would hide the compile time.
    return self.pool.start(name, self._peer_command, {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"})

  # Sections.

  def _race(self, task: Task, left: list[Task]) -> list[dict[str, Any]]:
    spec, settings = task.spec, self.config.races
    group = plan.seat(task)
    self.pool.enter(group)
    self._begun.add(self._round(task))
    mates = _mates(task, left)
    if settings.start_together:
      # A worker takes seconds to import its libraries, which needs no device.
      for mate in mates:
        for contestant in self._present(mate):
          # If it cannot be started, its row will say so.
          with contextlib.suppress(WorkerError):
            self._started(contestant, mate)
    runs: dict[str, race.Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    for contestant in plan.contestants(self.config, task):
      name = contestant.variant if contestant.framework == "jax" else f"torch_{contestant.variant}"
      row = {**spec, "framework": contestant.framework, "variant": contestant.variant}
      rows[name] = tables.race_row(row)
      if contestant.framework == "torch" and self._without_torch:
        rows[name]["reason"] = f"without PyTorch: {self._without_torch}"
        continue
      try:
        worker, facts = self._contestant(contestant, task, mates)
        memory = worker.ask("memory", work=contestant.asked)
      except WorkerError as error:
        rows[name]["reason"] = str(error)
        continue
      rows[name] |= {k: facts[k] for k in ("compile_s", "warmup_s", "compile_peak_rss_mib")}
      rows[name] |= {k: memory[k] for k in ("peak_rss_mib", "peak_of")}
      rows[name] |= {k: memory[k] for k in ("device_mib", "process_mib") if k in memory}
      if facts.get("cached"):
        rows[name]["cached"] = True
      rows[name]["tflop"] = facts["tflop"].get(contestant.asked)
      runs[name] = lambda w=worker, c=contestant: w.ask("run", work=c.asked)  # type: ignore[misc]
    limits = {"min_cycles": settings.min_cycles, "max_cycles": settings.max_cycles}
    seconds = min(settings.seconds, self.pool.deadline - time.monotonic())
    result = race.interleave(runs, **limits, seconds=seconds, pause=settings.pause)
    peak = self._peak(spec)
    for name, answers in result.answers.items():
      row = rows[name]
      if name in result.errors:
        row["reason"] = result.errors[name]
        continue
      row |= race.spread([answer["seconds"] for answer in answers])
      row["cycles"] = len(answers)
      row["images_per_s"] = spec["batch"] / row["median_s"]
      row["cpu_s"] = float(np.median([answer["cpu_seconds"] for answer in answers]))
      row["idle_cpu_s"] = sum(answer["idle_cpu_seconds"] for answer in answers)
      if row["tflop"] is not None and peak:
        row["percent_of_peak"] = 100 * 1e3 * row["tflop"] / row["median_s"] / peak
    found = list(rows.values())
    race.add_ratios(found)
    if settings.mfu and peak:
      race.add_mfu(found, peak)
    return found

  def _present(self, task: Task) -> list[Contestant]:
    """Contestants of a race that can take part in it."""
    found = plan.contestants(self.config, task)
    return [c for c in found if not (c.framework == "torch" and self._without_torch)]

  def _peak(self, spec: dict[str, Any]) -> float | None:
    """Best GFLOP/s of a matrix product like those of a race, in any framework, if measured."""
    kind = spec["dtype"]
    if kind == "float32" and spec.get("precision"):
      kind = f"{kind}/{spec['precision']}"
    found = (rates.get(kind) for rates in self.report["header"]["matmul_gflops"].values())
    return max((rate for rate in found if rate is not None), default=None)

  def _started(self, contestant: Contestant, task: Task) -> tuple[str, Worker]:
    """Returns a contestant's worker, started if need be, and its name."""
    label = "_".join(str(part) for part in plan.seat(task))
    if contestant.framework == "jax":
      steps = contestant.prepare.get("train_steps", 1)
      kind = "joint" if contestant.prepare.get("joint") else f"round_{steps}"
      name = f"jax_{'impress' if contestant.asked == plan.IMPRESS else kind}_{label}"
      flags = task.spec.get("xla_flags")
      added = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()} if flags else {}
      return name, self._jax(name, **added)
    kind = "impress_" if contestant.asked == plan.IMPRESS else ""
    name = f"torch_{kind}{contestant.variant}_{label}"
    return name, self._torch(name)

  def _contestant(
    self, contestant: Contestant, task: Task, mates: list[Task]
  ) -> tuple[Worker, dict[str, Any]]:
    """Returns the contestant's worker, prepared for all works of its races."""
    spec = dict(contestant.prepare)
    same = [
      other.asked
      for mate in mates
      for other in plan.contestants(self.config, mate)
      if (other.framework, other.prepare) == (contestant.framework, contestant.prepare)
    ]
    works = list(dict.fromkeys(same))
    name, worker = self._started(contestant, task)
    if contestant.framework == "torch":
      spec |= diffusers_configs(spec["unet"], spec.get("vae"))
      if contestant.asked != plan.IMPRESS:
        spec["device"] = self._device
    timeout = self.config.races.timeout
    return worker, self.pool.prepared(name, worker, works=works, timeout=timeout, **spec)

  def _ours(self, model: str) -> dict[str, Any]:
    unet = self.config.models[model].to_dict()
    return {"unet": unet, "performance": self.config.performance.to_dict()}

  def _primitives(self, task: Task) -> list[dict[str, Any]]:
    self.pool.enter("primitives")
    fields = {name: value for name, value in task.spec.items() if name != "name"}
    rows = self._jax("primitives").ask("primitive", **fields)["rows"]
    shown = {"primitive": task.spec["name"], "dtype": task.spec["dtype"]}
    shown["shape"] = "x".join(map(str, task.spec["x_shape"]))
    return [{**shown, **row} for row in rows]

  def _cost(self, task: Task) -> list[dict[str, Any]]:
    self.pool.enter(task.key)
    spec = self._ours(task.spec["model"])
    spec["unet"]["sample_size"] = task.spec["resolution"]
    steps = task.spec["steps"]
    spec |= {"batch": task.spec["batch"], "num_batches": task.spec["num_batches"]}
    answer = self._jax(task.key).ask("cost", train_steps=steps, perturb_steps=1, **spec)
    images = task.spec["batch"] * (steps + task.spec["num_batches"])
    answer["ms_per_image_step"] = 1e3 * answer["round_s"] / images
    return [{**task.spec, **_without_cpu(answer)}]

  def _scaling(self, task: Task) -> list[dict[str, Any]]:
    self.pool.enter(task.key)
    count = task.spec["devices"]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
      "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}",
      "JAX_PLATFORMS": "cpu",
    }
    folder = self.workdir / "scaling"
    folder.mkdir(exist_ok=True)
    delta = folder / f"delta_{count}.npy"
    spec = self._ours(task.spec["model"])
    answer = self._jax(task.key, **environment).ask(
      "scaling", delta_file=str(delta), batch=task.spec["batch"], **spec
    )
    row = {**task.spec, **_without_cpu(answer)}
    single = folder / "delta_1.npy"
    row["differs"] = row["max_difference_255"] = None
    if single.exists():
      ours, reference = np.load(delta), np.load(single)
      row["differs"] = float(np.mean(ours != reference))
      row["max_difference_255"] = 255 * float(np.abs(ours - reference).max())
    return [row]

  def _host(self, task: Task) -> list[dict[str, Any]]:
    self.pool.enter(task.key)
    names = ("batch", "num_rounds", "in_one_dispatch")
    options = {name: task.spec[name] for name in names}
    answer = self._jax(task.key).ask("host", **options, **self._ours(task.spec["model"]))
    return [{**task.spec, **_without_cpu(answer)}]

  def _compile(self, task: Task) -> list[dict[str, Any]]:
    row = dict(task.spec)
    spec = {**self._ours(task.spec["model"]), "batch": task.spec["batch"]}
    with tempfile.TemporaryDirectory(prefix="udp_jax_xla_") as cache:
      environment = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      }
      for name in ("cold", "cached"):
        self.pool.enter((task.key, name))
        answer = self._jax(f"{task.key}-{name}", **environment).ask("compile", **spec)
        row[f"trace_{name}_s"], row[f"compile_{name}_s"] = answer["trace_s"], answer["compile_s"]
        row["cache_mib"] = answer["cache_mib"]
      self.pool.stop()
    return [row]


def _mates(task: Task, left: list[Task]) -> list[Task]:
  """Races that share their workers with a race: it and those behind it, up to another seat."""
  behind = left[left.index(task) :]
  same = itertools.takewhile(lambda t: plan.seat(t) == plan.seat(task), behind)
  return [mate for mate in same if mate.section == "races"]


def _without_cpu(answer: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in answer.items() if "cpu_seconds" not in name}


def failures(report: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns our own rows that could not be measured."""
  rows = [row for row in report["rows"] if row["framework"] == "jax"]
  rows += [row for section in plan.SECTIONS[1:] for row in report[section]]
  return [row for row in rows if row.get("reason")]
