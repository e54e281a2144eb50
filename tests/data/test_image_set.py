"""Division and selection of image sets."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.data import image_set, naming, sources
from udp_jax.errors import ConfigError


def _set(count: int = 20, groups: np.ndarray | None = None, labels: np.ndarray | None = None):
  images = np.arange(count * 12, dtype=np.uint32).reshape(count, 2, 2, 3).astype(np.uint8)
  names = [f"{i:02d}" for i in range(count)]
  read = image_set.ImageSet(images, names, groups=groups, labels=labels)
  return image_set.finish(read, "test")


def test_take_keeps_everything_in_step() -> None:
  whole = _set(labels=np.arange(20), groups=np.arange(20) // 2)
  part = sources.take(whole, [3, 1])
  assert part.names == ("03", "01")
  np.testing.assert_array_equal(part.images, whole.images[[3, 1]])
  np.testing.assert_array_equal(part.labels, [3, 1])
  np.testing.assert_array_equal(part.groups, [1, 0])
  assert part.origin["count"] == 2
  assert part.origin["sha256"] == sources.pixels_sha256(part.images)
  assert whole.origin["count"] == 20


def test_hash_tells_pixels_and_shapes_apart() -> None:
  images = _set().images
  other = images.copy()
  other[0, 0, 0, 0] ^= 1
  hashes = {sources.pixels_sha256(x) for x in (images, other, images.reshape(20, 1, 4, 3))}
  assert len(hashes) == 3


@pytest.mark.parametrize("holdout", [5, 0.25])
def test_split_is_a_deterministic_partition(holdout: int | float) -> None:
  train, held = sources.split(_set(), holdout=holdout, seed=3)
  assert len(held.images) == 5
  assert sorted(train.names + held.names) == list(_set().names)
  assert list(held.names) == sorted(held.names)
  assert sources.split(_set(), holdout=holdout, seed=3)[1].names == held.names
  assert sources.split(_set(), holdout=holdout, seed=4)[1].names != held.names
  assert (train.origin["part"], held.origin["part"]) == ("train", "held out")


def test_split_never_divides_a_group() -> None:
  whole = _set(groups=np.arange(20) // 4)
  train, held = sources.split(whole, holdout=6, seed=0)
  assert len(held.images) == 6
  assert len(train.images) == 12  # two groups of four are gone, two images of them in neither
  assert not set(train.groups.tolist()) & set(held.groups.tolist())


def test_split_of_groups_keeps_the_labels_in_proportion() -> None:
  labels = np.repeat([0, 1], 200)
  groups = np.concatenate([np.arange(200) // 50, 10 + np.arange(200) // 5])
  for seed in range(5):
    _, held = sources.split(_set(400, groups, labels), holdout=100, seed=seed)
    np.testing.assert_array_equal(np.bincount(held.labels), [50, 50])


@pytest.mark.parametrize("holdout", [20, 25, -1])
def test_impossible_split(holdout: int) -> None:
  with pytest.raises(ConfigError, match="cannot hold out"):
    sources.split(_set(), holdout=holdout, seed=0)
  with pytest.raises(ConfigError, match="group"):
    sources.split(_set(groups=np.zeros(20)), holdout=3, seed=0)


@pytest.mark.parametrize(
  "name", ["", "/a", "../a", "a/../../b", "a//b", ".a", "a/.b", "a\0b", None]
)
def test_unsafe_names(name: str) -> None:
  assert not naming.is_safe_name(name)


def test_safe_names() -> None:
  assert all(naming.is_safe_name(name) for name in ("a", "a/b.c", "A: b", "é/1"))
