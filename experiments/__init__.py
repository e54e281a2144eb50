"""Entry points: each stage has one short `main`."""

from udp_jax.commands import cli as _cli

_cli.CONFIGS.append("experiments.configs")
