"""Strictness for whole folders of tests: what the source does not say is not done for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
import pytest

from udp_jax.models.base import DiffusionModel

# Those that the package uses, and that mix integers and floats.
_OF_OPTAX = ("adam", "adamw", "scale_by_learning_rate")
_OF_MODELS = ("init", "encode", "apply", "decode", "embed", "hold", "reconstruct", "posterior")


def strictly() -> Iterator[None]:
  """No array is broadcast to another's rank and no type is promoted, but inside of optax."""
  with (
    pytest.MonkeyPatch.context() as patch,
    jax.numpy_rank_promotion("raise"),
    jax.numpy_dtype_promotion("strict"),
  ):
    for name in _OF_OPTAX:
      patch.setattr(optax, name, _lenient_transformation(getattr(optax, name)))
    yield


def lenient_model(model: DiffusionModel) -> DiffusionModel:
  """A model whose networks may promote: strict is what is around them."""
  functions = {name: getattr(model, name) for name in _OF_MODELS}
  return model._replace(**{n: f and _lenient(f) for n, f in functions.items()})


@contextlib.contextmanager
def lenient() -> Iterator[None]:
  """Promotion as jax does it by default."""
  with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
    yield


def _lenient(function: Callable[..., Any]) -> Callable[..., Any]:
  @functools.wraps(function)
  def called(*args: Any, **options: Any) -> Any:
    with lenient():
      return function(*args, **options)

  return called


def _lenient_transformation(make: Callable[..., optax.GradientTransformation]) -> Callable:
  @functools.wraps(make)
  def made(*args: Any, **options: Any) -> optax.GradientTransformation:
    tx = make(*args, **options)
    return optax.GradientTransformation(tx.init, _lenient(tx.update))

  return made
