"""Functions over a set of pictures, in batches of one size."""

from __future__ import annotations

import numpy as np

from udp_jax.metrics.batches import over_pictures
from udp_jax.runtime import mesh


def test_batches_give_every_picture_once() -> None:
  seen: list[int] = []

  def double(numbers, nothing):
    assert nothing is None
    seen.append(len(numbers))
    return 2 * numbers

  values = np.arange(7)
  found = over_pictures(double, values, None, per_device_batch_size=3, mesh=mesh.make_mesh())
  np.testing.assert_array_equal(found, 2 * values)
  assert seen == [3, 3, 3]
