"""Operations may not lean on implicit promotion: of ranks, or of one dtype to another."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_ranks() -> Iterator[None]:
  """Operands of different ranks are an error."""
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
  """Operands of different dtypes are an error; Python's numbers take the other's dtype."""
  with jax.numpy_dtype_promotion("strict"):
    yield
