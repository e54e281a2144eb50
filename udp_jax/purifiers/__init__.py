"""Purifiers: methods that remove protections from pictures; one module each."""

from udp_jax.purifiers.base import (
  PRIORS,
  Batching,
  Iteration,
  Purifier,
  available,
  build,
  iterative,
  picture_keys,
  purify,
  run,
  uses_prior,
)

__all__ = [
  "PRIORS",
  "Batching",
  "Iteration",
  "Purifier",
  "available",
  "build",
  "iterative",
  "picture_keys",
  "purify",
  "run",
  "uses_prior",
]
