"""Configs: one folder per experiment, one file per config."""
