"""Our worker process: runs the library's contestants behind a pipe.

Sections without an opponent are handlers in the same process (`sections`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.benchmark import impress, serve
from udp_jax.benchmark.contestant import Contestant
from udp_jax.models import performance
from udp_jax.models.performance import DTYPES
from udp_jax.ops import attention
from udp_jax.runtime import provenance

# Calls between two readings of the clock on a GPU, which would else wait for the host after each.
_CALLS_ON_A_GPU = 4


def info() -> dict[str, Any]:
  """Returns hardware, versions and threads."""
  hardware, versions = provenance.hardware(), provenance.versions()
  gpu = attention.local_gpu()
  if gpu is not None:
    versions["cuDNN"] = str(gpu.cudnn_version)
  return {"hardware": hardware, "versions": versions, "threads": serve.cores()}


def _block(function: Any, array: jax.Array, *, calls: int) -> None:
  for _ in range(calls):
    result = function(array)
  jax.block_until_ready(result)


def _calls() -> int:
  return 1 if jax.default_backend() == "cpu" else _CALLS_ON_A_GPU


def _square(a: jax.Array) -> jax.Array:
  return a @ a


def matmul(size: int, rates: Sequence[str] = tuple(DTYPES)) -> dict[str, Any]:
  """Returns the peak GFLOP/s of a matrix product for each of `rates`: DTYPE or DTYPE/PRECISION."""
  found, calls = {}, _calls()
  for name in rates:
    dtype, _, precision = name.partition("/")
    product = jax.jit(performance.precisely(_square, {"precision": precision}))
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(DTYPES[dtype])
    multiply = partial(_block, product, a, calls=calls)
    found[name] = serve.matmul_gflops(multiply, size, products=calls)
  return {"gflops": found}


def copy(mib: int) -> dict[str, Any]:
  """Returns the peak GB/s at which memory is read and written, half of `mib` MiB each."""
  calls, moved = _calls(), mib * 2**20
  # The compiler would drop a mere copy; a change of sign is as much traffic.
  negate = jax.jit(jnp.negative)
  array = jnp.ones(moved // 8, jnp.float32)
  return {"gbs": serve.copy_gbs(partial(_block, negate, array, calls=calls), calls * moved)}


def main() -> None:
  """Serves until the pipe closes."""
  from udp_jax.benchmark import primitives, sections

  serve.serve(
    {
      "info": info,
      "matmul": matmul,
      "copy": copy,
      **serve.racing({"impress": impress.Contestant}, Contestant),
      "primitive": primitives.measure,
      "cost": sections.cost,
      "host": sections.host_overhead,
      "scaling": sections.scaling,
      "compile": sections.compile_time,
    }
  )


if __name__ == "__main__":
  main()
