"""Metrics one number a picture, so that spread over pictures can be told; everything is 8-bit.

`pictures` compares pictures with others of the same motif; `strength` asks a diffusion model about
them; `sets` compares samples with real pictures by features of a network; `style` classifies them;
`spread` tells how far a mean can be trusted. Distances between distributions are in `ops.frechet`.
"""
