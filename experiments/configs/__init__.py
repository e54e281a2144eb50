"""Configs: one folder per experiment, one file per config."""

from udp_jax.studies.configs import common

__all__ = ["common"]
