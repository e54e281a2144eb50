"""What a platform does to an upload, against Pillow's codec."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.purifiers.photographs import apply, photograph, through_pillow
from udp_jax import purifiers
from udp_jax.errors import ConfigError
from udp_jax.ops.image import to_float


def test_it_is_shrunk_stored_and_enlarged():
  images = to_float(photograph(2, 25, 30))
  options = {"factor": 0.4, "quality": 60, "resampling": "cubic"}
  got = apply(purifiers.build("platform_upload", None, options), images)
  small = jax.image.resize(images, (2, 10, 12, 3), "cubic", antialias=True)
  levels = np.clip(np.floor(255 * np.asarray(small) + 0.5), 0, 255).astype(np.uint8)
  stored = np.stack([through_pillow(x, 60) for x in levels]) / np.float32(255)
  expected = np.clip(jax.image.resize(stored, images.shape, "cubic", antialias=True), 0, 1)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_at_full_size_it_is_jpeg():
  images = to_float(photograph(2))
  got = apply(purifiers.build("platform_upload", None, {"factor": 1.0, "quality": 80}), images)
  np.testing.assert_array_equal(got, apply(purifiers.build("jpeg", None, {"quality": 80}), images))


def test_other_filters_are_refused():
  with pytest.raises(ConfigError, match="'box' is not one of linear, cubic"):
    purifiers.build("platform_upload", None, {"resampling": "box"})
