"""JPEG against Pillow's codec."""

from __future__ import annotations

import numpy as np
import pytest

from tests.purifiers.photographs import apply, photograph, through_pillow
from udp_jax import purifiers
from udp_jax.ops.image import to_float


def test_jpeg_is_the_codec():
  pictures = photograph()
  got = apply(purifiers.build("jpeg", None, {"quality": 60}), to_float(pictures))
  for picture, one in zip(pictures, got):
    np.testing.assert_array_equal(np.round(255 * one), through_pillow(picture, 60))
  full = purifiers.build("jpeg", None, {"quality": 60, "chroma_subsampling": False})
  np.testing.assert_array_equal(
    np.round(255 * apply(full, to_float(pictures[:1]))[0]), through_pillow(pictures[0], 60, "4:4:4")
  )


@pytest.mark.parametrize("codec", ["libjpeg", "differentiable"])
def test_jpeg_picks_one_of_several_qualities(codec):
  pictures = np.repeat(photograph(1), 6, axis=0)
  options = {"quality": (5, 50, 95), "codec": codec}
  got = 255 * apply(purifiers.build("jpeg", None, options), to_float(pictures))
  candidates = np.stack([through_pillow(pictures[0], q) for q in options["quality"]])
  errors = np.abs(got[:, None] - candidates).mean((2, 3, 4))
  chosen = errors.argmin(1)
  assert len(set(chosen)) > 1
  # At most a level or so apart, where another quality is several away.
  assert (errors.min(1) < (1e-3 if codec == "libjpeg" else 1.5)).all()
