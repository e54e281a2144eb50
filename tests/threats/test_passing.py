"""Options that constructors pass on: what a signature and a docstring say of them."""

from __future__ import annotations

import inspect

import pytest

from udp_jax import lookup
from udp_jax.errors import ConfigError
from udp_jax.threats.passing import passes_on


def _template(*, steps: int, rate: float = 0.5, other: str = "x"):
  """What is called in the end.

  Args:
    steps: how many.
    rate: how fast, which takes
      two lines to say.
    other: not for everyone.
  """
  return steps, rate, other


@passes_on(_template, "steps", "rate")
def method(model, *, own: int = 1, **options):
  """A method.

  Args:
    model: of any kind.
    own: its own.
    **options: of `_template`.

  Raises:
    ConfigError: never.
  """
  return model, own, _template(**options)


@passes_on(_template, "steps", "rate")
def slower(*, rate: float = 0.1, **options):
  """Says itself what its rate is.

  Args:
    rate: slower.
    **options: of `_template`.
  """
  return _template(rate=rate, **options)


def test_signature_and_docstring_name_the_options() -> None:
  parameters = inspect.signature(method).parameters
  assert list(parameters) == ["model", "own", "steps", "rate"]
  assert parameters["steps"].default is inspect.Parameter.empty
  assert parameters["rate"].default == 0.5
  assert (
    "\n    steps: how many.\n    rate: how fast, which takes\n      two lines" in method.__doc__
  )
  assert "options" not in method.__doc__ and "other" not in method.__doc__
  assert method("m", steps=3) == ("m", 1, (3, 0.5, "x"))
  lookup.check_options(method, "method", {"steps": 1, "rate": 2.0})
  with pytest.raises(ConfigError, match="needs the option.s. steps"):
    lookup.check_options(method, "method", {})
  with pytest.raises(ConfigError, match="has no option 'other'; it has: own, rate, steps"):
    lookup.check_options(method, "method", {"other": "y"})


def test_an_option_that_is_named_is_the_method_s_own() -> None:
  assert inspect.signature(slower).parameters["rate"].default == 0.1
  assert slower.__doc__ is not None and slower.__doc__.count("rate: ") == 1
  assert slower(steps=2) == (2, 0.1, "x")


def test_methods_that_are_not_written_for_it() -> None:
  def silent(**options):
    """Says nothing."""

  def closed(*, own: int = 1):
    """Takes none.

    Args:
      **options: of nobody.
    """

  for function in (silent, closed):
    with pytest.raises(ValueError, match="does not say what its"):
      passes_on(_template, "steps")(function)
  with pytest.raises(KeyError, match="unknown"):
    passes_on(_template, "unknown")(silent)
