"""Configs of `udp-jax protect`; `experiments.configs.eudp` has the others."""
