"""Diffusion models: networks, their trainable parts, sampling, and files in diffusers' layout."""
