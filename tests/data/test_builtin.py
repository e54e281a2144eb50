"""The photographs inside the scikit-image and scikit-learn wheels."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys

import numpy as np
import pytest

from udp_jax.data import builtin, images, sources
from udp_jax.errors import ConfigError, MissingDataError


@pytest.fixture(scope="module")
def crops() -> sources.ImageSet:
  return sources.load("builtin")


def test_enough_textured_distinct_crops(crops: sources.ImageSet) -> None:
  assert crops.images.shape[1:] == (32, 32, 3)
  assert crops.images.dtype == np.uint8
  assert 1500 <= len(crops.images) <= 1800
  assert len({image.tobytes() for image in crops.images}) == len(crops.images)
  assert crops.images.mean(axis=-1).std(axis=(1, 2)).min() >= 12
  assert len(set(crops.names)) == len(crops.names)
  assert "astronaut/0001" in crops.names
  counts = np.bincount(crops.labels)
  assert len(counts) == 9
  assert counts.max() <= 200
  assert counts.min() >= 50


def test_labels_are_the_photographs(crops: sources.ImageSet) -> None:
  for name, label in zip(crops.names, crops.labels):
    assert name.split("/")[0] == crops.origin["classes"][label]


@pytest.mark.slow
def test_loading_is_deterministic_and_the_seed_only_chooses(crops: sources.ImageSet) -> None:
  assert sources.load("builtin", seed=7).origin["sha256"] == crops.origin["sha256"]
  some = sources.load("builtin", limit=50, seed=7)
  assert len(some.images) == 50
  where = {name: i for i, name in enumerate(crops.names)}
  for name, image in zip(some.names, some.images):
    np.testing.assert_array_equal(image, crops.images[where[name]])
  assert some.names != sources.load("builtin", limit=50, seed=8).names
  assert len({name.split("/")[0] for name in some.names}) >= 5


def test_crops_are_area_means_of_the_photograph() -> None:
  photograph = images.read_pixels(builtin.find_photograph("astronaut"))
  # 512 pixels are three blocks of 171, the largest window of 144 in the centre of the first:
  # eight photograph pixels for one at size 18.
  crops = [crop for block, crop in builtin._photograph_crops(photograph, 18) if block == 0]
  window = photograph[13:157, 13:157].astype(np.float64)
  means = window.reshape(18, 8, 18, 8, 3).mean(axis=(1, 3))
  assert min(np.abs(crop - means).max() for crop in crops) < 0.51


@pytest.mark.parametrize(
  ("shape", "window"), [((512, 512), 48), ((300, 451), 80), ((427, 640), 144)]
)
def test_windows_stay_in_their_block_and_hardly_overlap(shape: tuple, window: int) -> None:
  places = list(builtin._windows(shape, window, 144))
  assert places
  blocks: dict[int, list[tuple[int, int]]] = {}
  for block, top, left in places:
    assert 0 <= top <= shape[0] - window
    assert 0 <= left <= shape[1] - window
    blocks.setdefault(block, []).append((top, left))
  corners = [(top, left) for _, top, left in places]
  for (top, left), (top2, left2) in itertools.combinations(corners, 2):
    shared = max(0, window - abs(top - top2)) * max(0, window - abs(left - left2))
    assert shared <= 0.27 * window**2  # a quarter, and the rounding to whole pixels
  boxes = [
    (min(tops), max(tops) + window, min(lefts), max(lefts) + window)
    for tops, lefts in (zip(*members) for members in blocks.values())
  ]
  for a, b in itertools.combinations(boxes, 2):
    assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], "blocks share pixels"


def test_held_out_crops_come_from_other_blocks(crops: sources.ImageSet) -> None:
  train, held = sources.split(crops, holdout=256, seed=0)
  assert len(held.images) == 256
  assert len(train.images) > 1200
  assert not set(train.groups.tolist()) & set(held.groups.tolist())
  assert (np.bincount(held.labels, minlength=9) > 5).all()


def test_other_sizes_and_classes() -> None:
  cats = sources.load("builtin", image_size=64, classes=("cat", "rocket"))
  assert cats.images.shape[1:] == (64, 64, 3)
  assert {name.split("/")[0] for name in cats.names} == {"cat", "rocket"}
  assert set(cats.labels.tolist()) == {1, 8}
  with pytest.raises(ConfigError, match="no class dog"):
    sources.load("builtin", classes=("dog",))
  with pytest.raises(ConfigError, match="no photograph is large enough"):
    sources.load("builtin", image_size=2000, classes=("cat",))
  with pytest.raises(ConfigError, match="image_size"):
    sources.load("builtin", image_size=0)


def test_a_photograph_is_shrunk_to_its_shorter_side() -> None:
  cat = images.read_pixels(builtin.find_photograph("cat"))
  small = builtin.shrunk(cat, 64)
  assert cat.shape == (300, 451, 3) and small.shape == (64, 96, 3) and small.dtype == np.uint8
  # Shrinking keeps the mean of every part.
  parts = [[half.mean((0, 1)) for half in np.array_split(p, 2, axis=1)] for p in (cat, small)]
  np.testing.assert_allclose(*parts, atol=1.0)
  assert builtin.shrunk(cat.transpose(1, 0, 2), 64).shape == (96, 64, 3)
  np.testing.assert_array_equal(builtin.shrunk(cat, 300), cat)
  for side in (0, 301):
    with pytest.raises(ConfigError, match=f"of 451x300 cannot be shrunk to {side} pixels"):
      builtin.shrunk(cat, side)
  with pytest.raises(ConfigError, match="unknown photograph 'dog'; known: astronaut, cat"):
    builtin.find_photograph("dog")


def test_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match=r"scikit-image.*pip install 'udp-jax\[eval\]'"):
    sources.load("builtin")


def test_neither_package_nor_jax_is_imported() -> None:
  program = (
    "import sys; from udp_jax.data import sources; sources.load('builtin', limit=4);"
    "assert not {'skimage', 'sklearn', 'scipy', 'jax'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
