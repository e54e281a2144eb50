"""Configs of `experiments.eudp`, `.protect`, `.train` and `.sample`."""
