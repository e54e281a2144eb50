"""Threats: what an infringer does with pictures; one module each, found by module name."""

from udp_jax.threats.base import Edit, Threat, build, build_edit

__all__ = ["Edit", "Threat", "build", "build_edit"]
