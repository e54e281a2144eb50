"""Functions that JAX traces must not ask the host: they would be answered once, for ever."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("udp_jax", "launch", "experiments")

# Whatever is given to these, as a decorator or as an argument, is traced.
TRACES = {
  "jit",
  "checkpoint",
  "remat",
  "custom_vjp",
  "custom_jvp",
  "grad",
  "value_and_grad",
  "vmap",
}
TRACES |= {"scan", "while_loop", "fori_loop", "cond", "switch", "shard_map", "eval_shape"}
# Modules that are the host's clock, memory, random numbers and messages, and calls that are such.
HOST_MODULES = {"time", "gc", "logging", "random", "_log", "datetime"}
HOST_CALLS = {"print", "open", "input"}

Function = ast.FunctionDef | ast.Lambda


def words(node: ast.AST) -> set[str]:
  """Names in an expression, and what is taken of them: {"partial", "jax", "jit"}."""
  found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
  return found | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def traced(tree: ast.Module) -> Iterator[Function]:
  """Functions of a module that are traced, because of what is written in that module."""
  named: dict[str, list[ast.FunctionDef]] = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      named.setdefault(node.name, []).append(node)
  todo: list[Function] = []
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef) and any(words(d) & TRACES for d in node.decorator_list):
      todo.append(node)
    if isinstance(node, ast.Call) and last_word(node.func) in TRACES:
      for given in node.args:
        todo += [given] if isinstance(given, ast.Lambda) else named.get(last_word(given), [])
  seen: set[int] = set()
  while todo:
    function = todo.pop()
    if id(function) not in seen:
      seen.add(id(function))
      yield function
      calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
      for call in calls:
        if isinstance(call.func, ast.Name):
          todo += named.get(call.func.id, [])


def last_word(node: ast.AST) -> str:
  if isinstance(node, ast.Call) and last_word(node.func) == "partial" and node.args:
    return last_word(node.args[0])
  return getattr(node, "attr", getattr(node, "id", ""))


def asks_the_host(function: Function) -> Iterator[str]:
  for node in ast.walk(function):
    if isinstance(node, ast.Call):
      base = node.func.value if isinstance(node.func, ast.Attribute) else None
      if isinstance(base, ast.Name) and base.id in HOST_MODULES:
        yield ast.unparse(node.func)
      elif isinstance(node.func, ast.Name) and node.func.id in HOST_CALLS:
        yield node.func.id


def found(source: str) -> set[str]:
  return {what for function in traced(ast.parse(source)) for what in asks_the_host(function)}


def test_nothing_traced_asks_the_host():
  modules = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
  assert len(modules) > 100
  asking = {str(path.relative_to(ROOT)): found(path.read_text("utf-8")) for path in modules}
  assert not {path: what for path, what in asking.items() if what}


@pytest.mark.parametrize(
  "source, expected",
  [
    ("@jax.jit\ndef f(x):\n  return time.monotonic() - x", {"time.monotonic"}),
    ("@partial(jax.jit, static_argnums=0)\ndef f(x):\n  gc.collect()", {"gc.collect"}),
    ("def f(x):\n  print(x)\ng = jax.jit(f, donate_argnums=0)", {"print"}),
    (
      "def f(x):\n  return h(x)\ndef h(x):\n  return time.time()\njax.lax.scan(f, 0, x)",
      {"time.time"},
    ),
    ("jax.vmap(lambda x: random.random())", {"random.random"}),
    ("jax.lax.scan(partial(f, 1), 0, x)\ndef f(n, c, x):\n  _log.info(x)", {"_log.info"}),
    ("def f(x):\n  return time.time()\ny = jax.jit(g)(f(0))", set()),
    ("@jax.jit\ndef f(x):\n  return jax.random.normal(x)", set()),
  ],
)
def test_the_search_finds_what_it_should(source, expected):
  assert found(source) == expected
