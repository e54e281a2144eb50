"""Budgets of saved files."""

from __future__ import annotations

import pytest

from udp_jax.data.budget import STRENGTHS, check_radius_255, levels, step
from udp_jax.errors import ConfigError


@pytest.mark.parametrize("value", [1, 1.0, 7.65, 255])
def test_what_a_file_can_keep(value: float) -> None:
  check_radius_255("--radius_255", value)


@pytest.mark.parametrize(
  "value", [0, 0.99, -3, 255.1, 256, float("nan"), float("inf"), "8", None, True, (8,)]
)
def test_what_it_cannot(value) -> None:
  with pytest.raises(ConfigError) as raised:
    check_radius_255("config.radius_255", value)
  said = f"config.radius_255 is {value}: it must be from 1 to 255"
  assert str(raised.value).startswith(said)


def test_files_that_are_compared_may_be_equal() -> None:
  check_radius_255("--radius_255", 0, least=0)
  with pytest.raises(ConfigError, match="from 0 to 255"):
    check_radius_255("--radius_255", -0.1, least=0)


def test_strengths_have_names() -> None:
  assert [levels("strength", name) for name in STRENGTHS] == [4, 8, 16]
  assert levels("strength", 7.65) == levels("strength", "7.65") == 7.65
  assert step(levels("strength", "strong")) == 2
  for value in ("Gentle", "", "8 levels", None, True, [8]):
    with pytest.raises(ConfigError, match="--strength is .*: it must be gentle, medium, strong or"):
      levels("--strength", value)
  for value in (0, "nan", "300"):
    with pytest.raises(ConfigError, match="--strength is .*: it must be from 1 to 255"):
      levels("--strength", value)
