"""Compiles the tests' programs quickly and keeps them, bounds memory, and reports both.

A plugin of pytest, loaded by tests/conftest.py.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import os
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
import pytest

# Most of a test's time would go to compiling programs that then run for a millisecond: to LLVM's
# optimisation, and to the MLIR passes of XLA's fusion emitters, which alone double the time of a
# compilation. jaxlib 0.12 has no other emitters and aborts on the flag.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jaxlib.__version__.startswith("0.10."):
  XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Bytes of compiled programs on disk. A run of all tests leaves about a tenth of it.
KEPT = 1 << 30
# A worker that takes more bytes than this at the end of a module forgets what it has compiled.
LARGE = 3 << 29
# Programs that are lowered in one MLIR context.
PROGRAMS = 300
# The files that take longest, longest first: the last file to start should be a short one.
LONG = (
  "tests/experiments/test_protect.py",
  "tests/experiments/test_eudp.py",
  "tests/launch/test_gpu_goldens.py",
  "tests/runtime/test_mesh.py",
  "tests/stages/test_protect_pictures.py",
  "tests/launch/test_tpu_pod.py",
  "tests/threats/test_finetuning.py",
  "tests/stages/test_protect.py",
  "tests/studies/matrix/test_run.py",
  "tests/stages/test_streaming.py",
  "tests/experiments/test_sample.py",
  "tests/protections/test_glaze.py",
  "tests/protections/test_contract.py",
  "tests/experiments/test_interruptions.py",
  "tests/protections/test_surrogates.py",
  "tests/purifiers/test_contract.py",
  "tests/models/test_sd_unet.py",
  "tests/models/test_ddpm_unet.py",
  "tests/purifiers/test_gridpure.py",
  "tests/models/test_latent.py",
  "tests/experiments/test_places.py",
  "tests/ops/test_attention.py",
  "tests/models/test_sd_goldens.py",
  "tests/models/test_tiny_ldm.py",
  "tests/models/test_perceptual.py",
  "tests/protections/test_latent_models.py",
)

_REPORTS = pytest.StashKey[list[dict[str, Any]]]()
_STARTED = time.monotonic()
_counts: collections.Counter[str] = collections.Counter()


def _compile_quickly() -> None:
  """Gives XLA its flags, which it reads once; processes that tests start inherit none of them."""
  if "XLA_FLAGS" in os.environ:
    return
  os.environ["XLA_FLAGS"] = XLA_FLAGS
  jax.jit(lambda: 0)()
  del os.environ["XLA_FLAGS"]


def _share_contexts() -> None:
  """Lowers a few hundred programs in one MLIR context, where this version of jax lets us.

  A context of its own takes every program 7 ms and a megabyte, which jax keeps with the program.
  Without this all tests pass too, in a sixth more time and twice the memory.
  """
  try:
    from jax._src.interpreters import mlir

    make = mlir.make_ir_context
  except (ImportError, AttributeError):
    return
  numbers = itertools.count()
  held: list[Any] = []

  def shared() -> Any:
    if next(numbers) % PROGRAMS == 0:  # A context keeps all constants of its programs.
      held[:] = [make()]
    return held[0]

  mlir.make_ir_context = shared


def cache_settings(config: pytest.Config) -> dict[str, Any]:
  """Settings of jax for a cache of compiled programs in pytest's own, not in the user's home.

  In capitals, the names are the environment variables of processes.
  """
  if not hasattr(config, "cache"):  # pytest -p no:cacheprovider
    return {"jax_enable_compilation_cache": False}
  return {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }


def sweep(folder: Path, limit: int = KEPT) -> None:
  """Deletes entries that a killed process left unfinished, and the oldest above `limit` bytes.

  jax writes an entry in place, and would warn of an unfinished one in every later run.
  """
  entries = []
  for path in folder.glob("*-cache"):
    data = path.read_bytes()
    if _is_whole(data):
      entries.append((path.stat().st_mtime, len(data), path))
    else:
      path.unlink()
  for _, size, path in sorted(entries, reverse=True):
    limit -= size
    if limit < 0:
      path.unlink()


def _is_whole(data: bytes) -> bool:
  """Whether jax can decompress the entry; assumed of Zstandard where Python itself has none."""
  if data[:4] == b"\x28\xb5\x2f\xfd":
    try:
      from compression import zstd
    except ImportError:
      return True
    decompress, error = zstd.decompress, zstd.ZstdError
  else:
    decompress, error = zlib.decompress, zlib.error
  try:
    return bool(decompress(data))
  except error:
    return False


# Now: what folders named on the command line have in their conftest comes before pytest_configure.
_compile_quickly()
_share_contexts()


def pytest_configure(config: pytest.Config) -> None:
  settings = cache_settings(config)
  if not hasattr(config, "workerinput") and "jax_compilation_cache_dir" in settings:
    sweep(Path(settings["jax_compilation_cache_dir"]))
  for name, value in settings.items():
    jax.config.update(name, value)
  jax.monitoring.register_event_listener(lambda event, **_: _counts.update([event]))
  config.stash[_REPORTS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {name: i for i, name in enumerate(LONG)}
  items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONG)))


def pytest_collection_finish() -> None:
  """What stays for good is no garbage: runs collect it often (`stages.rounds`)."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
  """Forgets compiled and traced programs after a module, where they have become many."""
  yield
  bound_memory()


def bound_memory() -> None:
  """Forgets compiled and traced programs, where they have become many."""
  if _resident() > LARGE:
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
      ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is freed.


def _resident() -> int:
  """Bytes of memory of this process now; 0 where there is no /proc."""
  try:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
  except OSError:
    return 0


def _own_report() -> dict[str, Any]:
  """Peak memory in GiB and processor seconds of this process; what was compiled, and read."""
  unit = 1 if sys.platform == "darwin" else 1024
  return {
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30,
    "processor": sum(os.times()[:4]),
    "compiled": _counts["/jax/compilation_cache/cache_misses"],
    "read": _counts["/jax/compilation_cache/cache_hits"],
  }


def pytest_sessionfinish(session: pytest.Session) -> None:
  config = session.config
  if hasattr(config, "workeroutput"):
    config.workeroutput["upkeep"] = _own_report()
  elif not config.stash[_REPORTS]:
    config.stash[_REPORTS].append(_own_report())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
  """A worker of pytest-xdist has ended; one that crashed has no report."""
  report = getattr(node, "workeroutput", {}).get("upkeep")
  if report is not None:
    node.config.stash[_REPORTS].append(report)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
  reports = config.stash[_REPORTS]
  if not reports:
    return
  total = {name: sum(report[name] for report in reports) for name in reports[0]}
  peaks = ", ".join(f"{report['peak']:.1f}" for report in reports)
  terminalreporter.write_line(
    f"{_minutes(time.monotonic() - _STARTED)}, {_minutes(total['processor'])} of processor time; "
    f"peak memory of each worker: {peaks} GiB; programs compiled: {total['compiled']}, "
    f"read from the cache: {total['read']}"
  )


def _minutes(seconds: float) -> str:
  return f"{int(seconds) // 60} min {int(seconds) % 60} s"
