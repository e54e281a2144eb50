"""Look-up of methods by module name, and the checks of their options."""

import sys

import pytest

from udp_jax import lookup
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
  assert lookup.available(package) == ["mild"]
  (tmp_path / "remedies" / "harsh.py").write_text("def harsh(model, *, dose): ...\n")
  assert lookup.available(package) == ["harsh", "mild"]
  assert lookup.constructor(package, "mild")("m", dose=1) == ("m", 1, 2)


@pytest.mark.parametrize("name", ["milder", "base", "", "__init__"])
def test_unknown_method(package, name):
  with pytest.raises(ConfigError, match=f"unknown remedie '{name}'; known: mild"):
    lookup.constructor(package, name)


def test_options(package):
  mild = lookup.constructor(package, "mild")
  lookup.check_options(mild, "remedy mild", {"dose": 1})
  with pytest.raises(ConfigError, match="remedy mild has no option 'Dose'; it has: dose, often"):
    lookup.check_options(mild, "remedy mild", {"Dose": 1, "dose": 1})
  with pytest.raises(ConfigError, match=r"remedy mild needs the option\(s\) dose"):
    lookup.check_options(mild, "remedy mild", {"often": 1})
  with pytest.raises(ConfigError, match="has no option 'model'"):
    lookup.check_options(mild, "remedy mild", {"model": 1, "dose": 1})
