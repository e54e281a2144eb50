"""Configs: one folder an experiment, one file a config."""
