"""How a command's process starts: the environment that jax reads, signals, logging, processes.

`prepare` runs before jax is imported, `start_process` once the flags are known.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
from pathlib import Path

from absl import flags
from absl import logging as absl_logging

from udp_jax.runtime import locks, processes

# The console script, and the packages whose modules are mains or define flags.
SCRIPT = "udp-jax"
OURS = ("experiments.", "udp_jax.commands.")
_TUNABLES = "glibc.malloc.hugetlb=1"
_TPU_FLAGS = (
  "--xla_tpu_run_space_to_batch=false",
  "--xla_tpu_run_space_to_batch_on_new_platforms=false",
)
_CPU_FLAGS = ("--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",)
_AUTOTUNE = "autotune"


def prepare() -> None:
  """Sets what has to be set before the imports that take seconds; may start the program again."""
  _ask_for_huge_pages()
  _collect_less_often()
  _keep_small_batches_whole()
  _schedule_for_memory()


def _ask_for_huge_pages() -> None:
  """Restarts this program with an allocator that asks the kernel for huge pages.

  XLA's CPU backend allocates its scratch memory anew for every call; page faults of 4 KiB each cost
  a quarter of a U-Net's step. glibc reads the setting only at the start of a process. A
  GLIBC_TUNABLES that is already set is kept.
  """
  first, second, *_ = [*sys.orig_argv[1:3], "", ""]
  ours = second.startswith(OURS) if first == "-m" else Path(first).name == SCRIPT
  glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
  if ours and glibc and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = _TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_small_batches_whole() -> None:
  """Tells the TPU compiler not to convert the feature maps of small batches into larger batches.

  It would enlarge the batch of a convolution by cutting its map into strips with margins, in every
  layer. For the VAE of Stable Diffusion at 512x512, four pictures per chip (v5e), that moves 155 GB
  per gradient instead of 27, and takes 3.7 times the cycles by the compiler's own estimate. A flag
  that is already set in LIBTPU_INIT_ARGS is kept; without a TPU nothing reads it.
  """
  given = os.environ.get("LIBTPU_INIT_ARGS", "")
  if "run_space_to_batch" not in given:
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*given.split(), *_TPU_FLAGS])


def _schedule_for_memory() -> None:
  """Tells XLA's CPU compiler to order operations by memory use, not by when they could start.

  By default it computes everything early that needs no gradient: a bfloat16 round of the CIFAR-10
  model then takes 1,520 MiB of scratch memory instead of 1,140, and no less time. A setting that is
  already in XLA_FLAGS is kept; other devices do not read it.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_scheduler_type" not in given:
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *_CPU_FLAGS])


def _collect_less_often() -> None:
  """Makes Python's garbage collector examine young objects less often.

  By default it does so every 700 allocations. Tracing a model makes millions of objects, and hardly
  any of them are garbage.
  """
  gc.set_threshold(20_000, 20, 50)


def start_process(*, resumable: bool = False) -> None:
  """Sets up signals, logging, and jax's compilation cache (jax reads it when imported, later)."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: _stop_at_once(number, resumable))
  # File names may contain bytes that are not text in any encoding.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
  logging.getLogger("udp_jax").setLevel(logging.INFO)
  # Orbax also logs every save, every wait and every error that it raises through absl.
  absl_logging.set_verbosity(absl_logging.FATAL)
  home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "udp_jax" / "xla")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _stop_at_once(number: int, resumable: bool) -> None:
  """Ends the process if no loop has anything to save: each part is complete on disk, or absent.

  An exception would not do: one that is raised in the middle of a compilation crashes the compiler.
  """
  text = f"stopped by {signal.Signals(number).name}"
  if resumable:
    text += "; what is finished is saved: run the same command to go on"
  processes.last_words(text)
  code = 0 if resumable and number == signal.SIGTERM else 128 + number
  processes.ask_to_stop(number)
  processes.leave(code, text, stopped=True)
  locks.release_all()
  os._exit(code)


def repeat_exactly(workdir: str | None) -> None:
  """Sets what --deterministic asks of XLA's GPU compiler. Settings that are already there stay."""
  folder = Path(workdir or os.environ["JAX_COMPILATION_CACHE_DIR"]).expanduser().absolute()
  place = str(folder / _AUTOTUNE)
  quote = '"' if len(place.split()) > 1 else ""
  wanted = (
    "--xla_gpu_exclude_nondeterministic_ops=true",
    f"--xla_gpu_per_fusion_autotune_cache_dir={quote}{place}{quote}",
  )
  given = os.environ.get("XLA_FLAGS", "")
  missing = [flag for flag in wanted if flag.partition("=")[0] not in given]
  os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
  # By default jax moves the choices into its own cache, whatever XLA_FLAGS says.
  os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def join_processes(resumable: bool) -> None:
  """Joins the other processes of the run, if any. From here on, only process 0 prints."""
  given = flags.FLAGS
  settings = processes.detect(
    coordinator=given.coordinator, num_processes=given.num_processes, process_id=given.process_id
  )
  processes.start(settings, peer_timeout_s=given.peer_timeout_s, resumable=resumable)
  if not processes.is_main():
    logging.getLogger("udp_jax").setLevel(logging.WARNING)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
  elif settings is not None:
    # Gloo, which runs collectives on CPUs, prints to stdout; send that to stderr from here on.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
