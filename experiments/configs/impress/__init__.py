"""Configs of `experiments.impress`."""
