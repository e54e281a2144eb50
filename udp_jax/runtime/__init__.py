"""Drives compiled work: the host loop, checkpoints, devices, processes and files."""
