"""Writes gpu.npz in this folder: known values of networks, for `launch.gpu_checks` on a GPU.

Run it from the repository's root, in the project's own environment, on a CPU:

  JAX_PLATFORMS=cpu python -m tests.goldens.make_gpu_goldens [PART ...]

It computes outputs and gradients of the parts of `launch.gpu_goldens` in float64. The file changes
only if a network or its hashed weights do. Given names of parts, it computes only these and keeps
the others. With --compare it writes nothing, and prints how far this machine's float32 and bfloat16
are from the file.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import numpy as np

from launch import gpu_goldens as lib


def make(name: str) -> dict[str, np.ndarray]:
  """The sketches of a part in float64, by their keys in the file."""
  made = lib.prepare(name, {"dtype": "float32", "conv_method": "xla"}, double=True)
  right = lib.sketches(*jax.device_get(made.run(*made[1:])))
  return {f"{name}/{key}": value for key, value in right.items()}


def compare(name: str) -> None:
  for dtype in ("float32", "bfloat16"):
    with jax.enable_x64(False):
      made = lib.prepare(name, {"dtype": dtype})
      found = lib.sketches(*jax.device_get(made.run(*made[1:])))
    for line in lib.compare(found, lib.known(name), lib.MODES["bf16"]):
      cosine = "" if line.cosine is None else f"  cosine {line.cosine:.7f}"
      print(f"{name:9} {dtype:9} {line.what:13} {line.error:9.2e}{cosine}", flush=True)


def main() -> None:
  words = sys.argv[1:]
  values: dict[str, np.ndarray] = {}
  if lib.FILE.exists():
    with np.load(lib.FILE) as file:
      values = {key: file[key] for key in file.files}
  for name in [word for word in words if word != "--compare"] or list(lib.PARTS):
    if "--compare" in words:
      compare(name)
      continue
    values = {key: value for key, value in values.items() if not key.startswith(f"{name}/")}
    np.savez_compressed(lib.FILE, **values, **make(name))
    with np.load(lib.FILE) as file:
      values = {key: file[key] for key in file.files}
    print(f"{name}: {lib.FILE} has {lib.FILE.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
  main()
