"""Threats: what an infringer does with pictures; one module each, looked up by module name."""

from udp_jax.threats.base import Threat, build

__all__ = ["Threat", "build"]
