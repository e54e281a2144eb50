"""Names and places in documents, docstrings and comments exist: modules, members, tests, files."""

from __future__ import annotations

import ast
import builtins
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments.configs import common, matrix
from experiments.configs.eudp import sd
from tests.house import imports

ROOT = Path(__file__).resolve().parents[1]
BASES = ("udp_jax", "experiments", "launch", "tests")
DOCUMENTS = sorted(
  path
  for pattern in ("*.md", *(f"{base}/**/*.md" for base in BASES))
  for path in ROOT.glob(pattern)
)
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
# `metadata.csv` is a file, not a member of a module.
_FILE = re.compile(r".*\.(?:csv|jpg|jsonl?|md|png|py|safetensors|sh)")
_SOURCE = re.compile(r"(?<![\w./\-<>*])[\w.\-]+(?:/[\w.\-]+)+\.py\b")
_TEST = re.compile(r"(?<![\w./\"])test_\w+\b(?!\*)")
# What a comment may name; the same in a text that is no comment does no harm.
_COMMENT = re.compile(r"#.*(?:`|\btest_|\.py\b)")
# Programs of others that texts compare with and that no file imports.
_OTHERS = {"lpips", "pipe", "sewar", "ximgproc", "CLIPTokenizer"}
# The example of a new file.
_EXAMPLE = "foo"


class Quoted(NamedTuple):
  """A name as a text gives it.

  Attributes:
    text: what stands in backticks, or the name of a test.
    place: file, and line where it is known.
  """

  text: str
  place: str

  @property
  def name(self) -> str:
    """The dotted name of `module.function(arguments)`; empty for anything else."""
    name = self.text.partition("(")[0]
    return name if _NAME.fullmatch(name) and not _FILE.fullmatch(name) else ""


def _in_backticks(text: str) -> list[str]:
  return re.findall(r"`([^`\n]+)`", text)


def _prose(document: Path) -> str:
  """A document without its blocks of code."""
  return re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)


def _texts(path: Path) -> Iterator[tuple[int, str]]:
  """Docstrings and comments of a Python file, with the lines where they begin."""
  tree, text = imports.tree(path), path.read_text("utf-8")
  for node in (tree, *imports.statements(tree)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      if docstring := ast.get_docstring(node, clean=False):
        yield node.body[0].lineno, docstring
  if not _COMMENT.search(text):  # Reading tokens takes longer than all else here.
    return
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      yield token.start[0], token.string


@functools.cache
def _local(path: Path) -> set[str]:
  """Names that a file gives to arguments and variables; its imports are not among them."""
  found: set[str] = set()
  for node in ast.walk(imports.tree(path)):
    if isinstance(node, ast.arg):
      found.add(node.arg)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      found.add(node.id)
  return found


def _sources(base: str) -> list[Path]:
  return sorted((ROOT / base).rglob("*.py"))


@functools.cache
def _modules() -> dict[str, list[Path]]:
  """Files of dotted names as texts write them: {"ops.conv": [ROOT / "udp_jax/ops/conv.py"]}."""
  found: dict[str, list[Path]] = {}
  for base in BASES:
    for path in _sources(base):
      parts = path.relative_to(ROOT).with_suffix("").parts
      parts = parts[:-1] if parts[-1] == "__init__" else parts
      for start in range(len(parts)):
        found.setdefault(".".join(parts[start:]), []).append(path)
  return found


@functools.cache
def _classes() -> dict[str, list[ast.ClassDef]]:
  found: dict[str, list[ast.ClassDef]] = {}
  for path in {path for paths in _modules().values() for path in paths}:
    for node in imports.statements(imports.tree(path)):
      if isinstance(node, ast.ClassDef):
        found.setdefault(node.name, []).append(node)
  return found


@functools.cache
def _foreign() -> set[str]:
  """First names of what is not ours: modules that files import, what they take from these."""
  found = {*sys.stdlib_module_names, *dir(builtins), *_OTHERS}
  for path in {path for paths in _modules().values() for path in paths}:
    for node in imports.statements(imports.tree(path)):
      if isinstance(node, ast.Import | ast.ImportFrom):
        module = getattr(node, "module", None)
        for alias in node.names:
          top = (module or alias.name).partition(".")[0]
          if top not in BASES:
            found |= {top, alias.asname or alias.name}
  return found


@functools.cache
def _tests() -> set[str]:
  """Names of test modules, of test functions, and of what `make` runs."""
  found = set(re.findall(r"^(test_\w+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
  for path in _sources("tests"):
    found.add(path.stem)
    defined = imports.statements(imports.tree(path))
    found |= {node.name for node in defined if isinstance(node, ast.FunctionDef)}
  return found


def _level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
  """Statements of a module or a class, those under `if`, `try` and `with` too."""
  for node in body:
    yield node
    for branch in ("body", "orelse", "handlers", "finalbody"):
      if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _level(getattr(node, branch, []))


def _members(owner: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
  """What a module or a class defines or imports at its own level, and sets on `self`."""
  found: dict[str, ast.AST] = {}
  for child in _level(owner.body):
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      found.setdefault(child.name, child)
    elif isinstance(child, ast.Assign | ast.AnnAssign):
      targets = child.targets if isinstance(child, ast.Assign) else [child.target]
      names = (name for target in targets for name in ast.walk(target))
      found |= {name.id: child for name in names if isinstance(name, ast.Name)}
    elif isinstance(child, ast.Import | ast.ImportFrom):
      found |= {(alias.asname or alias.name): child for alias in child.names}
  if isinstance(owner, ast.ClassDef):
    for node in ast.walk(owner):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        found.setdefault(node.attr, node)
  return found


@functools.cache
def _config() -> Any:
  """A config with every field that an experiment has."""
  config = matrix.matrix("", model="")
  config.update(common.study("").to_dict())
  config.model.architecture = sd.get_config().model.architecture
  return common.of_pictures(config, "")


def _is_field(name: str) -> bool:
  """Whether a config has the field, with or without `config.` before it."""
  owner = _config()
  for part in name.removeprefix("config.").split("."):
    if not hasattr(owner, "get") or part not in owner:
      return False
    owner = owner[part]
  return True


def _missing(name: str) -> str | None:
  """Says what of a dotted name does not exist; None if it exists or is not ours."""
  parts = name.split(".")
  if parts[0] in _classes():
    owners: list[ast.Module] | list[ast.ClassDef] = _classes()[parts[0]]
    owner, members = parts[0], parts[1:]
  else:
    known = [n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in _modules()]
    if _is_field(name) or (not known and parts[0] in _foreign()):
      return None
    if not known:
      return f"nothing is called {parts[0]}"
    owner, members = ".".join(parts[: known[-1]]), parts[known[-1] :]
    owners = [imports.tree(path) for path in _modules()[owner]]
  if any(_has(node, members) for node in owners):
    return None
  return f"{owner} has no {'.'.join(members)}"


def _has(node: ast.AST, members: list[str]) -> bool:
  """Whether a module has a member, and that one the next.

  What a class inherits from outside of this repository, and what values hold, is taken to exist.
  """
  if not members or not isinstance(node, ast.Module | ast.ClassDef):
    return True
  found = _members(node)
  if members[0] in found:
    return _has(found[members[0]], members[1:])
  if isinstance(node, ast.Module):
    return False
  bases = [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
  bases = [base for base in bases if base not in ("NamedTuple", "Protocol")]
  return any(
    base not in _classes() or any(_has(owner, members) for owner in _classes()[base])
    for base in bases
  )


def _wrong(quoted: list[Quoted], path: Path | None = None) -> list[str]:
  """Complaints about names that do not exist, nor begin with what is local to the file."""
  found = []
  for one in quoted:
    if _TEST.fullmatch(one.text):
      if one.text not in _tests():
        found.append(f"{one.place}: {one.text}: no test, test module or target of make")
    elif one.name and (said := _missing(one.name)):
      if path is None or one.name.partition(".")[0] not in _local(path):
        found.append(f"{one.place}: `{one.text}`: {said}")
  return found


def _no_files(text: str, folder: Path) -> list[str]:
  """Paths of Python files in a text that lead nowhere: from the root, the package or a folder."""
  paths = {
    path for path in _SOURCE.findall(text) if Path(path).stem.removeprefix("test_") != _EXAMPLE
  }
  ours = {path for path in paths if path.partition("/")[0] not in _foreign()}
  places = (ROOT, ROOT / "udp_jax", folder)
  return [path for path in sorted(ours) if not any((p / path).exists() for p in places)]


def _complain(wrong: list[str]) -> None:
  assert not wrong, "texts name what does not exist:\n" + "\n".join(wrong)


def _quoted(text: str, place: str) -> list[Quoted]:
  return [Quoted(name, place) for name in (*_in_backticks(text), *_TEST.findall(text))]


@pytest.mark.parametrize(
  "name",
  ["judging.Judge", "run_config.load", "picture_study.protect_row", "config.judging.weights"],
)
def test_names_that_begin_with_nothing_are_found(name: str) -> None:
  (said,) = _wrong(_quoted(f"As `{name}(x)` does it.", "file.py:1"))
  assert said == f"file.py:1: `{name}(x)`: nothing is called {name.partition('.')[0]}"


def test_files_that_do_not_exist_are_found() -> None:
  text = "As udp_jax/judging.py and (`stages/train.py`) do it, unlike jax/_src/core.py."
  assert _no_files(text, ROOT) == ["udp_jax/judging.py"]


@pytest.mark.parametrize("name", ["ops.conv.prepare", "conv.prepare", "Protection.update_all"])
def test_names_that_do_not_exist_are_found(name: str) -> None:
  owner, _, member = name.rpartition(".")
  (said,) = _wrong(_quoted(f"As `{name}(x)` does it.", "file.py:1"))
  assert said == f"file.py:1: `{name}(x)`: {owner} has no {member}"


def test_tests_that_do_not_exist_are_found() -> None:
  text = "Tested in test_glass_of_nothing, by `test_names_exist` and `make test_slow`."
  assert len(_wrong(_quoted(text, ""))) == 1


@pytest.mark.parametrize(
  "name",
  [
    *("places.use", "performance.steps_per_call", "jax.numpy", "ops.conv.conv2d", "metadata.csv"),
    *("Batch.limit", "protections.base.Protection.update", "test_documents"),
  ],
)
def test_names_that_exist_are_not_complained_about(name: str) -> None:
  assert _wrong(_quoted(f"`{name}`", "")) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_exist(document: Path) -> None:
  _complain(_wrong(_quoted(_prose(document), document.name)))


@pytest.mark.parametrize("base", BASES)
def test_names_in_docstrings_and_comments_exist(base: str) -> None:
  wrong = []
  for path in _sources(base):
    quoted = [
      one
      for line, text in _texts(path)
      for one in _quoted(text, f"{path.relative_to(ROOT)}:{line}")
    ]
    wrong += _wrong(quoted, path)
    for line, text in _texts(path):
      gone = _no_files(text, path.parent)
      wrong += [f"{path.relative_to(ROOT)}:{line}: {name}: no such file" for name in gone]
  _complain(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
  links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8"))
  local = [link for link in links if "://" not in link]
  assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(document: Path) -> None:
  """Paths of Python files of this repository, written from its root or from the package."""
  assert _no_files("\n".join(_in_backticks(_prose(document))), document.parent) == []


def test_the_map_is_short() -> None:
  """What does not fit stands in the files that the map names."""
  text = (ROOT / "WORKSPACE.md").read_text("utf-8")
  assert len(text.encode()) <= 15_000
  results = text.partition("\n## Results\n")[2]
  assert 0 < len(re.findall(r"^\| (?!question)[^|]+ \|", results, flags=re.M)) <= 10


def test_evidence_says_what_made_it() -> None:
  for path in (ROOT / "experiments" / "results").glob("*.md"):
    text = path.read_text("utf-8")
    for needed in (
      r"python -m experiments\.",
      r"commit\s+[0-9a-f]{7}",
      r"seed",
      r"cores?\s+of\s+an",
    ):
      assert re.search(needed, text), f"{path.name} does not say {needed}"
