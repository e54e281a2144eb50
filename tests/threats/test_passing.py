"""Options that constructors pass on: what a signature and a docstring say of them."""

from __future__ import annotations

import inspect

import pytest

from udp_jax import lookup
from udp_jax.errors import ConfigError
from udp_jax.threats.passing import argument_entry, passes_on


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
  # Without indentation, whatever the Python: 3.13 and later strip it, earlier versions do not.
  assert (
    method.__doc__
    == """A method.

Args:
  model: of any kind.
  own: its own.
  steps: how many.
  rate: how fast, which takes
    two lines to say.

Raises:
  ConfigError: never."""
  )
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

  with pytest.raises(ValueError, match=r"docstring of silent has 0 entries for \*\*options"):
    passes_on(_template, "steps")(silent)
  with pytest.raises(ValueError, match=r"closed takes no \*\*options"):
    passes_on(_template, "steps")(closed)
  with pytest.raises(KeyError, match="unknown"):
    passes_on(_template, "unknown")(silent)


@pytest.mark.parametrize("indentation", ["", "  ", "    ", "        "])
def test_the_indentation_of_a_docstring_is_nothing(indentation: str) -> None:
  """Python 3.13 strips what 3.11 leaves, and a nested function is indented more."""

  def placed(function):
    def copy(*args, **options):
      return function(*args, **options)

    first, *rest = inspect.cleandoc(function.__doc__).splitlines()
    copy.__doc__ = "\n".join([first, *(indentation + line if line else "" for line in rest)])
    copy.__name__ = function.__name__
    copy.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return copy

  def plain(model, **options):
    """A method whose options come last.

    Args:
      model: of any kind.
      **options: of `_template`,
        all of them.
    """

  decorated = passes_on(placed(_template), "rate", "other")(placed(plain))
  assert decorated.__doc__ == inspect.cleandoc("""A method whose options come last.

    Args:
      model: of any kind.
      rate: how fast, which takes
        two lines to say.
      other: not for everyone.
    """)
  assert argument_entry(decorated, "model") == "  model: of any kind.\n"
  assert argument_entry(placed(_template), "rate").count("\n") == 2
  with pytest.raises(ValueError, match="docstring of plain has 0 entries for steps"):
    argument_entry(decorated, "steps")
