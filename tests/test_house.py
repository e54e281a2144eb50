"""The house: imports that go down few floors, short parameter lists, every thing once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import counts
from tests.house.imports import FACE, ORDER, Imports, circles, layer, longest_chain, read, upward

ROOT = Path(__file__).resolve().parents[1]
MOST_FLOORS = 12
MOST_AT_ROOT = 5
MOST_SIGNATURES = 3


@pytest.fixture(scope="module")
def imports() -> Imports:
  return read(ROOT)


def test_every_package_has_its_place(imports: Imports) -> None:
  named = [name for line in ORDER for name in line]
  assert sorted(named) == sorted({layer(module) for module in imports if module != FACE})


def test_imports_go_down(imports: Imports) -> None:
  assert upward(imports) == []


def test_no_circle(imports: Imports) -> None:
  assert circles(imports) == []


def test_few_floors(imports: Imports) -> None:
  chain = longest_chain(imports)
  assert len(chain) <= MOST_FLOORS, " > ".join(chain)


def test_few_modules_at_the_root() -> None:
  assert len(list((ROOT / "udp_jax").glob("*.py"))) <= MOST_AT_ROOT


@pytest.fixture(scope="module")
def figures() -> dict[str, list[str]]:
  """What `counts` found in this checkout, by label."""
  return {figure.label: figure.which for figure in counts.count(ROOT)}


@pytest.mark.parametrize(
  ("label", "most"),
  [
    ("functions of over 8 parameters outside constructors of methods", 0),
    ("functions of stages with over 6", 0),
    ("`inspect.signature`", MOST_SIGNATURES),
    ("places that unlock a config, outside of `experiments/configs`", 0),
    ("clones of 10 lines and more", 0),
  ],
)
def test_what_the_house_keeps_few(figures: dict[str, list[str]], label: str, most: int) -> None:
  found = figures[label]
  assert len(found) <= most, "\n".join([f"{label}:", *found])


def test_results_claim_no_certainty() -> None:
  """Samples show what is likely, never what is so for certain."""
  texts = [*(ROOT / "experiments" / "results").glob("*.md"), *(ROOT / "udp_jax").rglob("*.*")]
  read = [path for path in texts if path.suffix in (".py", ".j2", ".md")]
  assert len(read) > 100
  assert [p.name for p in read if re.search(r"\bsurely\b", p.read_text(), re.IGNORECASE)] == []


def test_hidden_imports_are_seen(tmp_path: Path) -> None:
  def write(module: str, text: str) -> None:
    path = tmp_path / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  write("udp_jax.data.files", "def read():\n  from udp_jax.stages import protect\n")
  write("udp_jax.stages.protect", "import udp_jax.models.base as base")
  write("udp_jax.stages.train", "from udp_jax.report import text")
  write("udp_jax.report.text", "from udp_jax.stages import protect")
  write("udp_jax.models.base", "if TYPE_CHECKING:\n  from udp_jax.data.files import read\n")
  found = read(tmp_path)
  assert upward(found) == [
    "udp_jax.data.files > udp_jax.stages.protect",
    "udp_jax.report.text > udp_jax.stages.protect",
    "udp_jax.stages.train > udp_jax.report.text",
  ]
  circle = {"udp_jax.stages.protect", "udp_jax.models.base", "udp_jax.data.files"}
  assert circles(found) == [circle]
  above = ["udp_jax.stages.train", "udp_jax.report.text"]
  assert longest_chain(found) == [*above, " = ".join(sorted(circle))]
  found["udp_jax.data.files"] = set()
  assert circles(found) == []
  chain = ["udp_jax.stages.protect", "udp_jax.models.base", "udp_jax.data.files"]
  assert longest_chain(found) == [*above, *chain]
