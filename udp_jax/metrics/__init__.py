"""Metrics with one value per picture, so that their spread is known; all measure 8-bit pictures.

`pictures` compares pictures with others of the same motif; `denoising` measures their denoising
loss, `diffusion_classifier` finds the prompt that fits; `sets` compares samples with real pictures
by network features; `style` classifies pictures. With weights that the user provides, `clip_score`
asks CLIP and `identity` compares faces. `statistics` measures the uncertainty of means. Distances
between distributions are in `ops.frechet`.
"""
