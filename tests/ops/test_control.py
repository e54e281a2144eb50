"""A part of a program that runs or does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops.control import run_if


@pytest.mark.parametrize("condition", [True, False])
def test_only_where_the_condition_holds(condition: bool) -> None:
  @jax.jit
  def run(wanted, carry):
    return run_if(wanted, lambda c: {"a": 2 * c["a"], "b": c["b"] + 1}, carry)

  carry = {"a": jnp.arange(3.0), "b": jnp.int32(5)}
  found = run(jnp.asarray(condition), carry)
  np.testing.assert_array_equal(found["a"], np.arange(3.0) * (2 if condition else 1))
  assert found["b"] == 5 + condition


def test_none_means_always_and_is_no_loop() -> None:
  program = jax.make_jaxpr(lambda x: run_if(None, jnp.sin, x))(1.0)
  assert "while" not in str(program)
  assert float(run_if(None, jnp.sin, 1.0)) == pytest.approx(np.sin(1.0))
