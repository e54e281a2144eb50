"""Our worker: what it says of this machine, and the product whose rate it measures."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from udp_jax.benchmark import jax_worker, serve


def test_the_rate_is_that_of_a_product_in_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
  seen = []

  def rate(multiply, size: int) -> float:
    product, a = multiply.args
    wide = np.asarray(a, np.float64)
    np.testing.assert_allclose(np.asarray(product(a), np.float64), wide @ wide, rtol=0.1, atol=0.3)
    multiply()
    seen.append((a.dtype.name, a.shape, size))
    return float(len(seen))

  monkeypatch.setattr(serve, "matmul_gflops", rate)
  found = jax_worker.matmul(16)["gflops"]
  assert found == {"float32": 1.0, "bfloat16": 2.0}
  assert seen == [(name, (16, 16), 16) for name in ("float32", "bfloat16")]


def test_info_is_of_this_process() -> None:
  found = jax_worker.info()
  assert found["hardware"]["backend"] == jax.default_backend()
  assert found["versions"]["jax"] == jax.__version__
  assert found["threads"] == serve.cores() > 0


def test_every_section_of_the_benchmark_has_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
  served = {}
  monkeypatch.setattr(serve, "serve", served.update)
  jax_worker.main()
  asked = {"info", "matmul", "prepare", "run", "memory", "primitive", "cost", "host", "scaling",
           "compile"}  # fmt: skip
  assert served.keys() == asked
