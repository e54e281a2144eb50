"""Control flow for compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def run_if(condition: jax.Array | None, function: Callable[[Any], Any], carry: Any) -> Any:
  """Returns `function(carry)` if the condition is true, else `carry`; None counts as true.

  It uses a loop of at most one iteration instead of `lax.cond`: XLA's CPU backend parallelises the
  body of a loop, but not a branch of a conditional (measured: 1.7 times slower on two cores).

  >>> int(run_if(jnp.array(True), lambda x: x + 1, jnp.array(1)))
  2
  >>> int(run_if(jnp.array(False), lambda x: x + 1, jnp.array(1)))
  1
  """
  if condition is None:
    return function(carry)
  _, carry = jax.lax.while_loop(
    lambda state: state[0],
    lambda state: (jnp.zeros_like(state[0]), function(state[1])),
    (jnp.asarray(condition), carry),
  )
  return carry
