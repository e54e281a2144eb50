"""Low-rank updates by hand."""

from __future__ import annotations

import jax
import numpy as np

from udp_jax.models import lora


def test_a_convolutions_update_is_two_convolutions(factors: dict, plain_params: dict) -> None:
  x = jax.random.normal(jax.random.key(2), (1, 6, 6, 4))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  module = factors["unet"]["down_blocks_0"]["resnets_0"]["conv1"]
  kernel = plain_params["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
  merged = lora.merge_factors(module, {"kernel": kernel}, scale=0.5)["kernel"]
  apart = conv(x, kernel) + 0.5 * conv(conv(x, module["lora_A"]), module["lora_B"][None, None])
  np.testing.assert_allclose(conv(x, merged), apart, rtol=1e-4, atol=1e-4)
