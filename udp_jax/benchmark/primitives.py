"""Primitives with our own gradients, timed at the top level of a program and in a scan.

XLA's CPU backend runs some gradients many times slower inside a loop, and training and attacks run
them in loops.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.models.performance import DTYPES
from udp_jax.ops.attention import FUNCTIONS
from udp_jax.ops.conv import conv2d
from udp_jax.ops.norm import group_norm

WHAT = ("forward", "input grad", "weight grad")
# Largest acceptable ratio of the time in a scan to the time at the top level.
FLAGGED_ABOVE = 1.2
_STEPS = 4


def measure(
  primitive: str,
  x_shape: list[int],
  kernel: list[int] | None = None,
  stride: int = 1,
  method: str | None = None,
  dtype: str = "float32",
  seconds: float = 0.5,
) -> dict[str, Any]:
  """Measures one primitive at one shape; rows of `what`, `top_ms`, `scan_ms`, `ratio`, `flagged`.

  Args:
    primitive: "conv", "group_norm" or "attention".
    x_shape: (B, H, W, C), or (B, N, heads, D) for attention.
    kernel: shape (KH, KW, C, D) of a convolution's kernel.
    stride: stride of a convolution.
    method: form of a convolution (`ops.conv`) or of attention (`ops.attention.FUNCTIONS`).
    dtype: dtype of all arrays.
    seconds: measuring time for each number.
  """
  shape = tuple(x_shape)
  function, weight_shape = _function(primitive, shape, kernel, stride, method)
  x, weight = (
    jax.random.normal(jax.random.key(i), s).astype(DTYPES[dtype])
    for i, s in enumerate((shape, weight_shape))
  )
  rows = []
  for what in WHAT:
    if what == "weight grad" and primitive == "attention":
      continue  # Attention has no weights; its input is queries, keys and values.
    top, scan = _times(_step(function, what), x, weight, _cotangent(function, x, weight), seconds)
    ratio = scan / top
    rows.append(
      {
        "what": what,
        "top_ms": 1e3 * top,
        "scan_ms": 1e3 * scan,
        "ratio": ratio,
        "flagged": ratio > FLAGGED_ABOVE,
      }
    )
  return {"rows": rows}


def _function(
  primitive: str, shape: tuple[int, ...], kernel: list[int] | None, stride: int, method: str | None
) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], tuple[int, ...]]:
  if primitive == "conv":
    assert kernel is not None
    padding = kernel[0] // 2
    return (
      lambda x, w: conv2d(x, w, stride=stride, padding=padding, method=method),
      tuple(kernel),
    )
  if primitive == "group_norm":
    return lambda x, w: group_norm(x, w, jnp.zeros_like(w), activation="silu"), shape[-1:]
  if primitive == "attention":
    attend = FUNCTIONS[method or "dot_product"]
    return lambda x, w: attend(x, x, x), (1,)
  raise ValueError(f"unknown primitive {primitive!r}")


def _cotangent(function: Callable, x: jax.Array, weight: jax.Array) -> jax.Array:
  out = jax.eval_shape(function, x, weight)
  return jax.random.normal(jax.random.key(2), out.shape).astype(out.dtype)


def _step(function: Callable, what: str) -> Callable:
  """Returns a function of a carry (number, result) and three inputs that returns the next carry."""

  def apply(x: jax.Array, weight: jax.Array, cotangent: jax.Array) -> jax.Array:
    if what == "forward":
      return function(x, weight)
    if what == "input grad":
      return jax.vjp(lambda x: function(x, weight), x)[1](cotangent)[0]
    return jax.vjp(lambda w: function(x, w), weight)[1](cotangent)[0]

  def step(carry: tuple[jax.Array, Any], x: jax.Array, weight: jax.Array, cotangent: jax.Array):
    # The whole result is carried, so that XLA can drop no part of it. Every input depends on the
    # step before, so that XLA can move no application out of the loop.
    result = apply(x + carry[0], weight, cotangent + carry[0])
    return (result.ravel()[0] * jnp.asarray(1e-6, x.dtype), result)

  return step


def _times(
  step: Callable, x: jax.Array, weight: jax.Array, cotangent: jax.Array, seconds: float
) -> tuple[float, float]:
  """Median seconds of one application (at the top level, in a scan), measured in turns."""
  zero = jnp.zeros((), x.dtype)
  inputs = x, weight, cotangent
  start = (zero, jnp.zeros_like(jax.eval_shape(step, (zero, None), *inputs)[1]))
  top = jax.jit(step)

  @jax.jit
  def scanned(carry, *inputs):
    return jax.lax.scan(lambda c, _: (step(c, *inputs), None), carry, None, length=_STEPS)[0]

  def timed(function: Callable) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(start, *inputs))
    return time.perf_counter() - started

  found: dict[str, list[float]] = {"top": [], "scan": []}
  timed(top), timed(scanned)
  # One repeat is enough if it takes seconds.
  least = 1 if timed(scanned) > 4 * seconds else 3
  deadline = time.monotonic() + 2 * seconds
  while len(found["scan"]) < least or (time.monotonic() < deadline and len(found["scan"]) < 50):
    # The same number of applications of each, so that a disturbance affects both alike.
    found["top"] += [timed(top) for _ in range(_STEPS)]
    found["scan"].append(timed(scanned) / _STEPS)
  return statistics.median(found["top"]), statistics.median(found["scan"])
