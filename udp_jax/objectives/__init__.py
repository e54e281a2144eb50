"""Objectives: the losses that a perturbation or a model's weights minimise."""
