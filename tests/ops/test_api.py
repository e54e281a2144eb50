"""House rules for everything public in udp_jax.ops."""

import ast
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import udp_jax.ops as ops

MODULES = sorted(info.name for info in pkgutil.iter_modules(ops.__path__))

# Arguments that may have a default and yet be positional: operands and sizes, as in jax.random.
POSITIONAL_DEFAULTS = {"num_steps", "shape", "timesteps", "bias", "backend"}


def _public():
  for name in MODULES:
    module = getattr(ops, name)
    for attribute, value in sorted(vars(module).items()):
      if attribute.startswith("_") or getattr(value, "__module__", None) != module.__name__:
        continue
      if callable(value):
        yield f"{name}.{attribute}", value


PUBLIC = dict(_public())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isroutine(value)}


def test_the_expected_surface_is_there():
  assert {
    "attention",
    "conv",
    "frechet",
    "image",
    "norm",
    "projections",
    "samplers",
    "schedules",
    "similarity",
    "timesteps",
  } <= set(MODULES)
  assert len(FUNCTIONS) > 40
  assert "timesteps.sample" in FUNCTIONS and "samplers.ddim" in FUNCTIONS


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_documented_and_reachable(name):
  assert getattr(ops, name).__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
  doc = PUBLIC[name].__doc__ or ""
  # A NamedTuple without a docstring gets one made of its fields, "Name(field, ...)".
  assert doc and not doc.startswith(f"{name.split('.')[1]}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_follow_the_house(name):
  parameters = inspect.signature(FUNCTIONS[name]).parameters
  assert not {"rng", "eps", "alpha", "cfg", "mode", "batch_size"} & set(parameters)
  # In attention, `key` is what queries are compared with.
  if "key" in parameters and not name.startswith("attention."):
    assert next(iter(parameters)) == "key"
  for parameter in parameters.values():
    if parameter.default is not inspect.Parameter.empty:
      assert (
        parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.name in POSITIONAL_DEFAULTS
      ), f"{name}: {parameter.name} has a default, so it goes after *"
    annotated = parameter.annotation is not inspect.Parameter.empty
    assert annotated, f"{name}: {parameter.name} has no type"


@pytest.mark.parametrize("name", [*MODULES, "__init__"])
def test_modules_import_only_jax_and_numpy(name):
  path = pathlib.Path(ops.__path__[0]) / f"{name}.py"
  allowed = {"jax", "numpy", *sys.stdlib_module_names}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      imported = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name}: relative import"
      imported = [node.module or ""]
    else:
      continue
    for target in imported:
      inside = target == "udp_jax.ops" or target.startswith("udp_jax.ops.")
      assert inside or target.split(".")[0] in allowed, f"{name} imports {target}"


def test_importing_ops_alone_brings_in_no_training_library_and_no_backend():
  code = (
    "import udp_jax.ops, sys\n"
    "assert not {'flax', 'optax', 'orbax', 'diffusers'} & set(sys.modules)\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized(), 'importing udp_jax.ops started a backend'\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
