"""Names and places in the documents exist: modules, their members, files, links."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.configs import common, matrix

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
  path
  for pattern in ("*.md", "launch/*.md", "experiments/**/*.md", "udp_jax/**/*.md", "tests/**/*.md")
  for path in ROOT.glob(pattern)
)
_BASES = ("udp_jax", "experiments", "launch", "tests")
_PATH = re.compile(r"[\w.\-]+(?:/[\w.\-]+)+/?")
_NAME = re.compile(r"[a-z_]\w*(?:\.\w+)+(?<!\.json)(?<!\.sh)(?<!\.md)(?<!\.py)")
# The example of a new file.
_EXAMPLE = "foo"


def _quoted(document: Path) -> list[str]:
  """What stands in backticks outside of blocks of code."""
  text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
  return re.findall(r"`([^`\n]+)`", text)


@functools.cache
def _modules() -> dict[str, list[Path]]:
  """Files of dotted names as documents write them: {"ops.conv": [ROOT / "udp_jax/ops/conv.py"]}."""
  found: dict[str, list[Path]] = {}
  for base in _BASES:
    for path in (ROOT / base).rglob("*.py"):
      parts = path.relative_to(ROOT).with_suffix("").parts
      parts = parts[:-1] if parts[-1] == "__init__" else parts
      for start in range(len(parts)):
        found.setdefault(".".join(parts[start:]), []).append(path)
  return found


def _members(node: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
  """What a module or a class defines or imports at its own level."""
  found: dict[str, ast.AST] = {}
  for child in ast.walk(node) if isinstance(node, ast.Module) else node.body:
    if isinstance(child, ast.FunctionDef | ast.ClassDef):
      found.setdefault(child.name, child)
    elif isinstance(child, ast.Assign | ast.AnnAssign):
      targets = child.targets if isinstance(child, ast.Assign) else [child.target]
      found |= {target.id: child for target in targets if isinstance(target, ast.Name)}
    elif isinstance(child, ast.Import | ast.ImportFrom):
      found |= {(alias.asname or alias.name): child for alias in child.names}
  return found


@functools.cache
def _config() -> Any:
  """A config with every field that an experiment has."""
  config = matrix.matrix("", model="")
  config.update(common.study("").to_dict())
  return common.of_pictures(config, "")


def _is_field(name: str) -> bool:
  """Whether a config has the field."""
  owner = _config()
  for part in name.split("."):
    if not hasattr(owner, "get") or part not in owner:
      return False
    owner = owner[part]
  return True


def _missing(name: str) -> str | None:
  """What of a dotted name does not exist; None for names that begin with no module of ours."""
  parts = name.split(".")
  known = [n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in _modules()]
  if not known or _is_field(name):
    return None
  module, members = ".".join(parts[: known[-1]]), parts[known[-1] :]
  if any(_has(ast.parse(path.read_text("utf-8")), members) for path in _modules()[module]):
    return None
  return f"{module} has no {'.'.join(members)}"


def _has(node: ast.AST, members: list[str]) -> bool:
  """Whether a module has a member, and that one the next; of other than classes, unknown is yes."""
  if not members or not isinstance(node, ast.Module | ast.ClassDef):
    return True
  found = _members(node)
  return members[0] in found and _has(found[members[0]], members[1:])


def test_names_that_do_not_exist_are_found() -> None:
  assert _missing("ops.conv.prepare") == "ops.conv has no prepare"
  assert _missing("protections.base.Protection.update_all") is not None
  for name in ("places.use", "performance.steps_per_call", "jax.numpy", "ops.conv.conv2d"):
    assert _missing(name) is None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_exist(document: Path) -> None:
  wrong = []
  for quoted in _quoted(document):
    name = quoted.partition("(")[0]
    if _NAME.fullmatch(name) and (said := _missing(name)):
      wrong.append(f"`{quoted}`: {said}")
  assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
  links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8"))
  local = [link for link in links if "://" not in link]
  assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(document: Path) -> None:
  """Paths of Python files of this repository, written from its root or from the package."""
  paths = {q for q in _quoted(document) if _PATH.fullmatch(q) and q.endswith(".py")}
  paths = {path for path in paths if Path(path).stem != _EXAMPLE}
  places = (ROOT, ROOT / "udp_jax", document.parent)
  assert [path for path in sorted(paths) if not any((p / path).exists() for p in places)] == []
