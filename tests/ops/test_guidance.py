"""Guidance of a linear network, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops.guidance import guided

X_T = np.arange(6, dtype=np.float32).reshape(2, 3)
TIMES = np.array([4, 9], np.int32)
COND, UNCOND = np.array([10.0, 20.0], np.float32), np.array([1.0, 2.0], np.float32)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, -2.0])
def test_the_difference_is_stretched(scale: float) -> None:
  sizes = []

  def denoise(x_t, timesteps, cond):
    sizes.append(len(x_t))
    told = cond["text"] * timesteps.astype(jnp.float32)
    return 3 * x_t + told[:, None]

  found = guided(denoise, {"text": COND}, {"text": UNCOND}, scale=scale)(X_T, TIMES)
  without, given = (3 * X_T + (cond * TIMES)[:, None] for cond in (UNCOND, COND))
  np.testing.assert_allclose(found, without + scale * (given - without), rtol=1e-6)
  # One pass of a doubled batch; the conditional prediction alone needs no second half.
  assert sizes == [2 if scale == 1.0 else 4]


def test_narrow_predictions_are_stretched_wide() -> None:
  def denoise(x_t, timesteps, cond):
    del timesteps
    return (x_t + cond[:, None]).astype(jnp.bfloat16)

  found = guided(denoise, COND, UNCOND, scale=1.5)(X_T, TIMES)
  assert found.dtype == jnp.float32
