"""Purifiers: methods that remove protections from pictures; one module each."""

from udp_jax.purifiers.base import (
  Batching,
  Iteration,
  Purifier,
  available,
  build,
  iterative,
  picture_keys,
  purify,
  run,
)

__all__ = [
  "Batching",
  "Iteration",
  "Purifier",
  "available",
  "build",
  "iterative",
  "picture_keys",
  "purify",
  "run",
]
