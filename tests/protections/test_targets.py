"""Targets by name and by file."""

import numpy as np
import pytest
from PIL import Image

from udp_jax.errors import MissingDataError
from udp_jax.protections import targets


@pytest.mark.parametrize("name", targets.PATTERNS)
def test_patterns_are_pictures_of_any_size(name):
  for shape in ((64, 64, 3), (24, 40, 3), (8, 8, 3)):
    picture = targets.picture(name, shape)
    assert picture.shape == shape and picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1
    np.testing.assert_array_equal(picture, targets.picture(name, shape))


def test_what_the_patterns_look_like():
  assert targets.picture("zero", (8, 8, 3)) is None
  np.testing.assert_array_equal(targets.picture("grey", (8, 8, 3)), 0.5)
  pattern = targets.picture("pattern", (64, 64, 3))
  assert set(np.unique(pattern)) == {0.0, 1.0} and 0.4 < pattern.mean() < 0.6
  # Repeated all over: every eighth of the picture has both.
  eighths = pattern.reshape(8, 8, 8, 8, 3).mean((1, 3, 4))
  assert 0.1 < eighths.min() and eighths.max() < 0.9
  facets = targets.picture("facets", (64, 64, 3))
  assert facets.std((0, 1)).min() > 0.1
  # Flat inside of facets: most neighbours are alike, and some are not at all.
  steps = np.abs(np.diff(facets, axis=1)).max(-1)
  assert np.median(steps) < 0.05 and steps.max() > 0.3


def test_a_file_is_cropped_and_resized(tmp_path):
  pixels = np.zeros((40, 60, 3), np.uint8)
  pixels[:, 10:50] = (0, 102, 255)
  Image.fromarray(pixels).save(tmp_path / "style.png")
  picture = targets.picture(str(tmp_path / "style.png"), (16, 16, 3))
  assert picture.dtype == np.float32
  np.testing.assert_allclose(picture, np.broadcast_to([0, 0.4, 1], (16, 16, 3)), atol=1e-6)
  assert targets.picture(str(tmp_path / "style.png"), (8, 16, 3)).shape == (8, 16, 3)


def test_no_such_target(tmp_path):
  with pytest.raises(MissingDataError, match="'stripes' is no image file and none of: zero, grey"):
    targets.picture("stripes", (8, 8, 3))
