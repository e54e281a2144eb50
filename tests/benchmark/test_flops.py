"""Counted FLOPs of compiled programs against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from udp_jax.benchmark import flops
from udp_jax.ops.conv import conv2d


def _count(function, *arguments) -> flops.Cost:
  return flops.count(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_and_convolutions() -> None:
  a, b = jnp.ones((8, 16)), jnp.ones((16, 32))
  assert _count(lambda a, b: jnp.tanh(a) @ b, a, b).total == 2 * 8 * 16 * 32
  batched = jnp.ones((5, 8, 16)), jnp.ones((5, 16, 4))
  assert _count(lambda a, b: a @ b, *batched).total == 2 * 5 * 8 * 16 * 4
  x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 24))
  found = _count(lambda x, k: conv2d(x, k, method="xla"), x, kernel)
  assert found.total == 2 * (2 * 8 * 8 * 24) * 9 * 16
  found = _count(lambda x, k: conv2d(x, k, method="xla", stride=2), x, kernel)
  assert found.total == 2 * (2 * 4 * 4 * 24) * 9 * 16


def test_loops_are_multiplied_by_their_trips() -> None:
  a = jnp.ones((8, 8))

  def nested(a):
    def inner(x, _):
      return jnp.sin(x @ a), None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=3)[0] @ a, None

    return jax.lax.scan(outer, a, None, length=5)[0]

  assert _count(nested, a).total == 2 * 8**3 * 5 * (3 + 1)


def test_a_conditional_counts_its_dearest_branch() -> None:
  a = jnp.ones((8, 8))
  found = _count(
    lambda first, a: jax.lax.cond(first, lambda: jnp.sin(a @ a) @ a, lambda: a), True, a
  )
  assert found == flops.Cost(4 * 8**3, ())


def test_a_part_that_may_be_left_out_counts_once_and_is_listed() -> None:
  def part(wanted, function, a):
    return jax.lax.while_loop(
      lambda carry: carry[0],
      lambda carry: (jnp.zeros_like(carry[0]), function(carry[1])),
      (wanted, a),
    )[1]

  def two(first, second, a):
    a = part(first, lambda a: jax.lax.scan(lambda x, _: (x @ x, None), a, None, length=3)[0], a)
    return part(second, lambda a: jnp.cos(a) @ a, a)

  found = _count(two, True, False, jnp.ones((8, 8)))
  assert found.parts == (3 * 2 * 8**3, 2 * 8**3)
  assert found.total == 4 * 2 * 8**3


def test_what_is_no_program_is_an_error() -> None:
  with pytest.raises(ValueError, match="no entry"):
    flops.count("nothing")
