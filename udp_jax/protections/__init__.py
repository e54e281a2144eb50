"""Protections: one module per method, found by module name; there is no registry to edit."""

from udp_jax.protections.base import (
  Info,
  PGDState,
  Protection,
  l2_descent,
  over_batches,
  pgd,
  run,
  sign_descent,
)
from udp_jax.protections.lookup import CONTROLS, available, build
from udp_jax.protections.maxmin import BilevelState, bilevel, joint

__all__ = [
  "CONTROLS",
  "BilevelState",
  "Info",
  "PGDState",
  "Protection",
  "available",
  "bilevel",
  "build",
  "joint",
  "l2_descent",
  "over_batches",
  "pgd",
  "run",
  "sign_descent",
]
