"""What `make docs` relies on; the pages themselves are written by CI."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house import pages

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_imports_and_says_what_it_is() -> None:
  assert [name for name in pages.modules() if not importlib.import_module(name).__doc__] == []


def test_the_modules_are_those_of_the_package() -> None:
  files = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "udp_jax").rglob("*.py")
  }
  assert files - {*pages.modules()} == {*pages.PEERS}


def test_named_tuples_are_found() -> None:
  class Own(NamedTuple):
    value: int

  module = type(pages)("own")
  Own.__module__ = "own"
  vars(module).update(Own=Own, Path=Path, borrowed=pytest.ExceptionInfo)
  assert [*pages.named_tuples(module)] == [Own]


def test_make_writes_pages_where_git_does_not_look() -> None:
  rule = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
  assert "-m tests.house.pages build/api" in rule
  assert "/build/" in (ROOT / ".gitignore").read_text().splitlines()
