"""Shrinking and enlarging against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.errors import ConfigError


@pytest.mark.parametrize(
  ("method", "theirs"),
  [("linear", Image.Resampling.BILINEAR), ("lanczos3", Image.Resampling.LANCZOS)],
)
def test_there_and_back_is_pillow_s(method: str, theirs: Image.Resampling) -> None:
  pictures = photograph(2)
  options = {"factor": 0.5, "method": method}
  found = 255 * apply(purifiers.build("resize", None, options), pictures / np.float32(255))
  for picture, one in zip(pictures, found):
    image = Image.fromarray(picture)
    back = image.resize((15, 12), theirs).resize(image.size, theirs)
    # Theirs rounds to 8 bits on the way.
    assert np.abs(np.asarray(back).astype(float) - one).max() <= 2


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"factor": 1.0}, "factor must be in"),
    ({"method": "box"}, "method 'box' is not one of nearest, linear"),
  ],
)
def test_what_is_no_resizing(options: dict, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    purifiers.build("resize", None, options)
