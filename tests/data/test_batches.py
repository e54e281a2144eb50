"""Batches: every picture once, in its lane, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.data import batches
from udp_jax.errors import ConfigError

PICTURES = np.arange(7 * 2 * 2 * 3, dtype=np.uint8).reshape(7, 2, 2, 3)


@pytest.mark.parametrize(("size", "shape"), [(3, (3, 3)), (7, (1, 7)), (50, (1, 7)), (1, (7, 1))])
def test_pictures_are_arranged_and_come_back(size: int, shape: tuple[int, int]) -> None:
  cond = 10 * np.arange(7)
  found = batches.make_batches(PICTURES, size, cond=cond, mask=None)
  assert found.images.shape[:2] == found.ids.shape == found.weight.shape == shape
  np.testing.assert_array_equal(batches.unbatch(found.images, 7), PICTURES)
  np.testing.assert_array_equal(batches.unbatch(found.cond, 7), cond)
  assert found.mask is None and found.weight.sum() == 7
  # The padding has numbers of its own, and counts nothing.
  ids = found.ids.ravel()
  np.testing.assert_array_equal(ids, np.arange(len(ids)))
  np.testing.assert_array_equal(found.weight.ravel(), ids < 7)
  np.testing.assert_array_equal(
    found.images.reshape(-1, 2, 2, 3)[ids >= 7], PICTURES[ids[ids >= 7] % 7]
  )


def test_an_epoch_takes_every_picture_of_a_lane_once() -> None:
  key = jax.random.key(0)
  take = jax.jit(lambda step: batches.take_rows(key, step, 5, 4))
  rows = np.stack([take(step) for step in range(10)])
  for epoch in (rows[:5], rows[5:]):
    np.testing.assert_array_equal(np.sort(epoch, axis=0), np.arange(5)[:, None].repeat(4, 1))
  assert np.any(rows[:5] != rows[5:]) and len({tuple(lane) for lane in rows.T}) > 1


def test_rows_are_taken_and_put_back() -> None:
  leaf, rows = jnp.arange(12.0).reshape(3, 4), jnp.array([2, 0, 1, 2])
  taken = batches.take({"a": leaf}, rows)["a"]
  np.testing.assert_array_equal(taken, [8, 1, 6, 11])
  expected = np.arange(12.0).reshape(3, 4)
  expected[[2, 0, 1, 2], np.arange(4)] = -1.0
  np.testing.assert_array_equal(batches.put(leaf, rows, jnp.full(4, -1.0)), expected)


def test_half_of_a_batch_is_of_the_class() -> None:
  subject, others = PICTURES[:2], PICTURES[2:]
  found = batches.batches_with_prior(
    subject, np.array([[1], [2]]), others, np.full((5, 1), 9), prior_weight=0.5, global_batch_size=4
  )
  assert found.images.shape == (3, 4, 2, 2, 3)
  first = found.images[:, :2].reshape(-1, 2, 2, 3)
  np.testing.assert_array_equal(first, subject[np.arange(6) % 2])
  second = found.images[:, 2:].reshape(-1, 2, 2, 3)
  np.testing.assert_array_equal(second, others[np.arange(6) % 5])
  np.testing.assert_array_equal(found.weight, np.tile([1, 1, 0.5, 0.5], (3, 1)))
  assert len(np.unique(found.ids)) == 12
  np.testing.assert_array_equal(found.cond[:, 2:], 9)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"global_batch_size": 3}, "a global batch of 3 has no halves"),
    ({"images": PICTURES[:0]}, "needs pictures of the subject and of its class"),
    ({"prior_images": np.zeros((5, 4, 4, 3), np.uint8)}, "do not go together"),
    ({"prior_cond": np.zeros((5, 2))}, "do not go together"),
  ],
)
def test_halves_that_do_not_fit(changes: dict, message: str) -> None:
  given = {
    "images": PICTURES[:2], "cond": np.zeros((2, 1)), "prior_images": PICTURES[2:],
    "prior_cond": np.zeros((5, 1)), "prior_weight": 1.0, "global_batch_size": 4,
  }  # fmt: skip
  with pytest.raises(ConfigError, match=message):
    batches.batches_with_prior(**given | changes)
