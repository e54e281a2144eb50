"""Our worker: what it says of this machine, and the product whose rate it measures."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from udp_jax.benchmark import jax_worker, serve


def test_the_rate_is_that_of_a_product_in_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
  seen = []

  def rate(multiply, size: int, products: int) -> float:
    assert products == 1
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
  assert jax_worker.matmul(16, ["float32/tf32"])["gflops"] == {"float32/tf32": 3.0}
  assert seen[-1] == ("float32", (16, 16), 16)


def test_a_gpu_is_asked_several_times_before_the_clock_is_read(monkeypatch) -> None:
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  calls = []

  def rate(run, moved: int) -> float:
    run.func(lambda array: calls.append(array.shape) or array, *run.args[1:], **run.keywords)
    # Half is read and half is written, in each of the calls.
    assert moved == len(calls) * 2 * 4 * calls[0][0] == len(calls) * 2**20
    return 7.0

  monkeypatch.setattr(serve, "copy_gbs", rate)
  assert jax_worker.copy(1) == {"gbs": 7.0}
  assert len(calls) == jax_worker._CALLS_ON_A_GPU > 1


def test_precisions_of_products_are_those_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
  found = []

  def rate(multiply, size: int, products: int) -> float:
    product, a = multiply.args
    found.append(product.trace(a).lower(lowering_platforms=("cuda",)).as_text())
    return 1.0

  monkeypatch.setattr(serve, "matmul_gflops", rate)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  jax_worker.matmul(8, ["float32", "float32/tf32", "float32/highest"])
  assert all("dot_general" in text for text in found)
  precisions = [set(re.findall(r"\bHIGH\w*", text)) for text in found]
  assert precisions == [set(), set(), {"HIGHEST"}]


def test_info_is_of_this_process() -> None:
  found = jax_worker.info()
  assert found["hardware"]["backend"] == jax.default_backend()
  assert found["versions"]["jax"] == jax.__version__
  assert found["threads"] == serve.cores() > 0


def test_every_section_of_the_benchmark_has_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
  served = {}
  monkeypatch.setattr(serve, "serve", served.update)
  jax_worker.main()
  asked = {"info", "matmul", "copy", "prepare", "run", "memory", "primitive", "cost", "host",
           "scaling", "compile"}  # fmt: skip
  assert served.keys() == asked
