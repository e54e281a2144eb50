"""Configs of `udp-jax purify` and `experiments.purify`."""
