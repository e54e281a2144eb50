"""Protections: one module a method, looked up by module name; no registry to edit."""

from udp_jax.protections.base import (
  BilevelState,
  Info,
  PGDState,
  Protection,
  bilevel,
  over_batches,
  pgd,
  run,
  sign_descent,
)
from udp_jax.protections.lookup import available, build

__all__ = [
  "BilevelState",
  "Info",
  "PGDState",
  "Protection",
  "available",
  "bilevel",
  "build",
  "over_batches",
  "pgd",
  "run",
  "sign_descent",
]
