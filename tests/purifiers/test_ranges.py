"""Values of purifiers' options: their types and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from udp_jax.errors import ConfigError
from udp_jax.purifiers import ranges
from udp_jax.purifiers.ranges import Range


def method(
  model: Any,
  *,
  quality: int | Sequence[int] = 75,
  diameter: int = 5,
  sigma: float = 1.0,
  methods: Sequence[Mapping[str, Any]] = (),
  codec: str = "a",
  subsampling: bool = True,
  something: Any = None,
) -> None: ...


@pytest.mark.parametrize(
  ("reach", "inside", "outside", "said"),
  [
    (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan), "0 to 1"),
    (Range(0, 1, above=True), (0.1, 1), (0, math.inf), "above 0 and at most 1"),
    (Range(1, 255, odd=True), (1, 3, 255), (2, 254, 257), "odd, 1 to 255"),
  ],
)
def test_ends_of_a_range(reach: Range, inside: tuple, outside: tuple, said: str) -> None:
  assert all(map(reach.holds, inside)) and not any(map(reach.holds, outside))
  assert str(reach) == said


@pytest.mark.parametrize(
  "options",
  [
    {"quality": 1, "diameter": 255, "sigma": 100},
    {"quality": (1, 100), "sigma": 1e-9, "codec": "", "subsampling": False},
    {"quality": [50], "methods": [{"name": "jpeg"}], "something": object()},
  ],
)
def test_what_fits(options: dict) -> None:
  ranges.check(method, "a", options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"quality": 0}, "quality must be 1 to 100, got 0"),
    ({"quality": (50, 101)}, r"quality must be 1 to 100, got \(50, 101\)"),
    ({"quality": True}, "quality must be a whole number, or a list of them, 1 to 100, got True"),
    ({"quality": ()}, "quality must be a whole number, or a list of them"),
    ({"quality": "75"}, "quality must be a whole number, or a list of them"),
    ({"diameter": 4}, "diameter must be odd, 1 to 255, got 4"),
    ({"diameter": 5.0}, "diameter must be a whole number, odd, 1 to 255, got 5.0"),
    ({"sigma": 0}, "sigma must be above 0 and at most 100, got 0"),
    ({"sigma": math.nan}, "sigma must be a number, above 0 and at most 100, got nan"),
    ({"methods": ["jpeg"]}, "methods must be a list of objects"),
    ({"codec": 3}, "codec must be a word, got 3"),
    ({"subsampling": 1}, "subsampling must be true or false, got 1"),
  ],
)
def test_what_does_not(options: dict, message: str) -> None:
  with pytest.raises(ConfigError, match=f"purifier a: {message}"):
    ranges.check(method, "a", options)
