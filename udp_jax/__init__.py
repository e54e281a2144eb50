"""Unlearnable diffusion perturbations in JAX: protections, purifiers, threats, metrics."""
