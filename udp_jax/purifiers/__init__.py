"""Purifiers: what is done to protected pictures to undo their protection; one module each."""

from udp_jax.purifiers.base import (
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
  "Iteration",
  "Purifier",
  "available",
  "build",
  "iterative",
  "picture_keys",
  "purify",
  "run",
]
