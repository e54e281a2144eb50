"""Metrics one number a picture, so that spread over pictures can be told; everything is 8-bit.

`pictures` compares pictures with others of the same motif; `strength` asks a diffusion model about
them, `diffusion_classifier` which prompt they fit; `sets` compares samples with real pictures by
features of a network; `style` classifies them. With weights that the user brings, `clip_score` asks
CLIP, and `identity` whether it is the same person. `spread` tells how far a mean can be trusted.
Distances between distributions are in `ops.frechet`.
"""
