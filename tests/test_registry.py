"""Look-up of methods by module name, and making them from flat options."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import pytest

from udp_jax import registry
from udp_jax.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of one method `mild`, beside a `base` that is none."""
  folder = tmp_path / "remedies"
  folder.mkdir()
  (folder / "__init__.py").touch()
  (folder / "base.py").write_text("def base(model, *, dose): ...\n")
  (folder / "mild.py").write_text("def mild(model, *, dose, often=2): return model, dose, often\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield "remedies"
  for name in [n for n in sys.modules if n.partition(".")[0] == "remedies"]:
    del sys.modules[name]


def test_a_new_file_is_a_new_method(package, tmp_path):
  assert registry.available(package) == ["mild"]
  (tmp_path / "remedies" / "harsh.py").write_text("def harsh(model, *, dose): ...\n")
  assert registry.available(package) == ["harsh", "mild"]
  assert registry.constructor(package, "mild")("m", dose=1) == ("m", 1, 2)


@pytest.mark.parametrize("name", ["milder", "base", "", "__init__"])
def test_unknown_method(package, name):
  with pytest.raises(ConfigError, match=f"unknown remedie '{name}'; known: mild"):
    registry.constructor(package, name)


def test_options(package):
  mild = registry.constructor(package, "mild")
  registry.check_options(mild, "remedy mild", {"dose": 1})
  with pytest.raises(ConfigError, match="remedy mild has no option 'Dose'; it has: dose, often"):
    registry.check_options(mild, "remedy mild", {"Dose": 1, "dose": 1})
  with pytest.raises(ConfigError, match=r"remedy mild needs the option\(s\) dose"):
    registry.check_options(mild, "remedy mild", {"often": 1})
  with pytest.raises(ConfigError, match="has no option 'model'"):
    registry.check_options(mild, "remedy mild", {"model": 1, "dose": 1})


# ---- groups ----


@dataclasses.dataclass(frozen=True)
class Dose:
  """How much.

  Attributes:
    amount: in drops.
    often: a day.
    unit: of one of them.
  """

  amount: int = 3
  often: int = 2
  unit: str = "drops"


@dataclasses.dataclass(frozen=True)
class Bottle:
  """In what.

  Attributes:
    colour: of the glass.
  """

  colour: str = "brown"


USED = ("amount", "often")


def mixture(
  patient,
  *,
  name: str,
  dose: Annotated[Dose, USED] = Dose(amount=5),
  bottle: Bottle = Bottle(),
  bitter: bool = False,
):
  """A method with two groups, one of which it takes in part."""
  registry.only("mixture", dose, USED)
  return patient, name, dose, bottle, bitter


def test_fields_are_flat():
  assert registry.fields(mixture) == {
    "name": (registry.REQUIRED, None, "str"),
    "amount": (5, "dose", "int"),
    "often": (2, "dose", "int"),
    "colour": ("brown", "bottle", "str"),
    "bitter": (False, None, "bool"),
  }


def test_make_puts_options_into_their_groups():
  options = {"often": 4, "name": "x", "bitter": True}
  made = registry.make(mixture, "remedy mixture", "p", options=options)
  assert made == ("p", "x", Dose(amount=5, often=4), Bottle(), True)
  assert registry.make(mixture, "m", "p", options={"name": "x"})[2] == Dose(amount=5)
  with pytest.raises(ConfigError, match=r"remedy mixture needs the option\(s\) name"):
    registry.make(mixture, "remedy mixture", "p", options={"often": 4})
  for unknown in ("dose", "unit", "patient"):
    message = f"remedy mixture has no option '{unknown}'; it has: amount, bitter, colour, name, oft"
    with pytest.raises(ConfigError, match=message):
      registry.make(mixture, "remedy mixture", "p", options={"name": "x", unknown: 1})


def test_a_field_that_is_not_used_is_refused():
  with pytest.raises(ConfigError, match=r"mixture has no use for Dose.unit; it takes: amount, oft"):
    mixture("p", name="x", dose=Dose(unit="spoons"))


def test_an_option_that_was_renamed_is_refused_with_its_new_name(monkeypatch):
  monkeypatch.setitem(registry.RENAMED, ("mixture", "drops"), "amount")
  with pytest.raises(ConfigError, match="m has no option 'drops': it is called 'amount' now"):
    registry.make(mixture, "m", "p", options={"name": "x", "drops": 1})
  # A name that another method has, or had, is none of this one.
  with pytest.raises(ConfigError, match="m has no option 'spoons'; it has"):
    registry.make(mixture, "m", "p", options={"name": "x", "spoons": 1})


def test_groups_share_no_names():
  def twice(*, amount: int = 1, dose: Dose = Dose()): ...

  with pytest.raises(TypeError, match="twice has the option 'amount' twice"):
    registry.fields(twice)


def test_scaled():
  given = {"radius_255": 51, "rate": 3, "name": "x_255"}
  assert registry.scaled(given, "m") == {"radius": 0.2, "rate": 3, "name": "x_255"}
  for value in ("x", None, True):
    with pytest.raises(ConfigError, match=f"m: radius_255 must be a number, got {value!r}"):
      registry.scaled({"radius_255": value}, "m")
