"""Our worker process: runs the library's contestants behind a pipe.

Sections without an opponent are handlers in the same process (`sections`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from udp_jax.benchmark import impress, serve
from udp_jax.benchmark.contestant import Contestant
from udp_jax.models.performance import DTYPES
from udp_jax.runtime import provenance


def info() -> dict[str, Any]:
  """Returns hardware, versions and threads."""
  hardware, versions = provenance.hardware(), provenance.versions()
  return {"hardware": hardware, "versions": versions, "threads": serve.cores()}


def _block(function: Any, *arguments: Any) -> None:
  jax.block_until_ready(function(*arguments))


def matmul(size: int) -> dict[str, Any]:
  """Returns the peak GFLOP/s of a matrix product, by dtype."""
  rates = {}
  product = jax.jit(lambda a: a @ a)
  for name, dtype in DTYPES.items():
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    rates[name] = serve.matmul_gflops(partial(_block, product, a), size)
  return {"gflops": rates}


def main() -> None:
  """Serves until the pipe closes."""
  from udp_jax.benchmark import primitives, sections

  serve.serve(
    {
      "info": info,
      "matmul": matmul,
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
