"""Values of a model's config that come from anyone's file."""

from __future__ import annotations

import pytest

from udp_jax.errors import ConfigError
from udp_jax.models.ddpm_unet import UNet2DConfig

GOOD = {
  "block_out_channels": [8],
  "down_block_types": ["DownBlock2D"],
  "up_block_types": ["UpBlock2D"],
  "norm_num_groups": 4,
}


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("down_block_types", [10**5000]),
    ("block_out_channels", [""]),
    ("block_out_channels", []),
    ("block_out_channels", [0]),
    ("block_out_channels", [8] * 33),
    ("layers_per_block", "../up.png"),
    ("layers_per_block", 65),
    ("layers_per_block", True),
    ("norm_num_groups", 0),
    ("norm_eps", float("nan")),
    ("out_channels", 1 << 40),
    ("dropout", None),
  ],
)
def test_values_that_no_model_has(field: str, value: object) -> None:
  assert UNet2DConfig.from_dict(GOOD).block_out_channels == (8,)
  with pytest.raises(ConfigError, match=field):
    UNet2DConfig.from_dict(GOOD | {field: value})
