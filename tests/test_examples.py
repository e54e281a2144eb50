"""The examples in docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib
import io
from pathlib import Path

import pytest

from tests.house import source
from tests.upkeep import bound_memory

ROOT = Path(__file__).resolve().parents[1]
MODULES = source.with_examples(ROOT)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(module: str, path: Path) -> list[doctest.DocTest]:
  """The examples of a file, each with the module's names and no others."""
  names = vars(importlib.import_module(module))
  parser = doctest.DocTestParser()
  found = [
    parser.get_doctest(text, dict(names), f"{module}.{name}", str(path), line - 1)
    for name, line, text in source.docstrings(path)
  ]
  return [one for one in found if one.examples]


def complaints(example: doctest.DocTest) -> str:
  """What doctest has to say of an example; empty where it shows what it says."""
  said = io.StringIO()
  doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(example, out=said.write)
  return said.getvalue()


@pytest.mark.parametrize(
  "module", [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")]
)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  assert "".join(complaints(one) for one in examples(module, MODULES[module])) == ""
  bound_memory()  # Those of one file are as many programs as those of ten others.


def test_a_wrong_example_is_found() -> None:
  text = "Adds.\n\n>>> 1 + 1\n3\n"
  example = doctest.DocTestParser().get_doctest(text, {}, "wrong", None, 0)
  assert "Expected:\n    3\nGot:\n    2" in complaints(example)


def test_every_public_function_has_an_example() -> None:
  bare = [
    str(function)
    for name, path in MODULES.items()
    for function in source.functions(name, path)
    if function.is_public and ">>> " not in function.docstring
  ]
  assert not bare, "\n".join([f"{len(bare)} public functions without an example:", *bare])
