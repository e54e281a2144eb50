"""The counts see what they count, in a checkout of a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import counts

_COPY = "\n".join(f"  some{number} = open(some{number - 1}, 'x')" for number in range(1, 12))
FILES = {
  "WORKSPACE.md": "map",
  "udp_jax/errors.py": "",
  "udp_jax/ops/levels.py": f"""
import inspect
# inspect.signature in a comment
def shown(a, *, b):
  '''Adds.

  >>> shown(1, b=2)
  3
  '''
  return inspect.signature(a)
def bare():
  def nested(a, b, c, d, e, f, g, h, *i): ...
class Holder:
  def method(self, a): ...
def _private(some0):
{_COPY}
""",
  "udp_jax/protections/foo.py": f"""
from udp_jax.ops import levels
def foo(a, b, c, d, e, f, g, h, i, j): ...
def other(some0):
  # not copied
{_COPY.replace("'x'", "'y'")}
""",
  "udp_jax/stages/protect.py": "def protect(a, b, c, d, e, f, g):\n  with a.unlocked(): ...",
  "experiments/configs/one.py": "with a.unlocked(): ...",
  "tests/test_one.py": "",
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, counts.Figure]:
  root: Path = tmp_path_factory.mktemp("checkout")
  for name, text in FILES.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  return {figure.label: figure for figure in counts.count(root)}


@pytest.mark.parametrize(
  ("label", "value", "which"),
  [
    ("modules at the root", 1, ["errors"]),
    ("floors", 2, ["udp_jax.protections.foo", "udp_jax.ops.levels"]),
    ("circles", 0, []),
    ("imports that go up", 0, []),
    ("longest parameter list", 10, []),
    ("longest parameter list outside constructors of methods", 9, []),
    (
      "functions of over 8 parameters outside constructors of methods",
      1,
      ["9: udp_jax.ops.levels.bare.nested"],
    ),
    ("functions of stages with over 6", 1, ["7: udp_jax.stages.protect.protect"]),
    ("`inspect.signature`", 1, ["udp_jax.ops.levels:10"]),
    (
      "places that unlock a config, outside of `experiments/configs`",
      1,
      ["udp_jax.stages.protect:2"],
    ),
    ("WORKSPACE.md, bytes", 3, []),
    ("lines of examples (`>>>`)", 1, []),
    (
      "public functions of 6 packages with an example",
      "1 of 4",
      ["udp_jax.ops.levels.bare", "udp_jax.protections.foo.foo", "udp_jax.protections.foo.other"],
    ),
  ],
)
def test_what_is_counted(
  figures: dict[str, counts.Figure], label: str, value: int | str, which: list[str]
) -> None:
  assert (figures[label].value, figures[label].which) == (value, which)


def test_clones_of_literals_are_clones(figures: dict[str, counts.Figure]) -> None:
  (said,) = figures["clones of 10 lines and more"].which
  assert said.startswith("11 lines: udp_jax/ops/levels.py:16-26") and said.endswith(
    " = udp_jax/protections/foo.py:6-16"
  )


def test_checkouts_stand_beside_each_other(figures: dict[str, counts.Figure]) -> None:
  shown = counts.table({"before": [*figures.values()], "after": [*figures.values()]})
  assert shown.splitlines()[0] == "| | before | after |"
  assert "| floors | 2 | 2 |" in shown.splitlines()
