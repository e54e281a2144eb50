"""Primitives in and out of a scan: the gradients that are timed, and the rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.benchmark import primitives


def test_each_step_is_what_its_name_says() -> None:
  """Of x * w * w, whose gradients are known."""
  x, w, cotangent = (jax.random.normal(jax.random.key(i), (3, 2)) for i in range(3))
  expected = {
    "forward": x * w * w,
    "input grad": cotangent * w * w,
    "weight grad": 2 * cotangent * x * w,
  }
  assert set(expected) == set(primitives.WHAT)
  for what, value in expected.items():
    step = primitives._step(lambda x, w: x * w * w, what)
    carry, result = step((jnp.zeros(()), None), x, w, cotangent)
    np.testing.assert_allclose(result, value, rtol=1e-6)
    # The next application depends on this one.
    assert carry == pytest.approx(1e-6 * float(value[0, 0]))


def test_rows_of_a_primitive() -> None:
  rows = primitives.measure("group_norm", [1, 4, 4, 32], seconds=0.001)["rows"]
  assert [row["what"] for row in rows] == list(primitives.WHAT)
  for row in rows:
    assert row["ratio"] == pytest.approx(row["scan_ms"] / row["top_ms"]) and row["top_ms"] > 0
    assert row["flagged"] == (row["ratio"] > 1.2)


def test_attention_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(primitives, "_times", lambda *_: (0.001, 0.002))
  rows = primitives.measure("attention", [1, 4, 2, 4])["rows"]
  assert [row["what"] for row in rows] == ["forward", "input grad"]
  assert [(row["top_ms"], row["scan_ms"], row["flagged"]) for row in rows] == 2 * [(1.0, 2.0, True)]


def test_unknown_primitive() -> None:
  with pytest.raises(ValueError, match="unknown primitive 'fft'"):
    primitives.measure("fft", [1, 2])
