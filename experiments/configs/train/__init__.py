"""Configs of `experiments.train`."""
