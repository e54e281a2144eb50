"""Writes pages of the package's functions by pdoc; a warning of pdoc's is an error.

python -m tests.house.pages build/api
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import udp_jax

# These run where torch is installed and this package is not.
PEERS: tuple[str, ...] = ("udp_jax.benchmark.torch_impress", "udp_jax.benchmark.torch_worker")
if importlib.util.find_spec("gradio") is None:  # The extra `page`.
  PEERS += ("udp_jax.page.app", "udp_jax.page.server")


def modules() -> list[str]:
  """Names of all modules of the package that can be imported here."""
  found = pkgutil.walk_packages(udp_jax.__path__, "udp_jax.")
  return ["udp_jax", *(one.name for one in found if one.name not in PEERS)]


def named_tuples(module: ModuleType) -> Iterator[type]:
  """The NamedTuples that a module defines."""
  for value in vars(module).values():
    own = isinstance(value, type) and value.__module__ == module.__name__
    if own and issubclass(value, tuple) and hasattr(value, "_fields"):
      yield value


def write(folder: Path) -> int:
  """Writes a page for each module, with an index and a search; returns how many modules."""
  import pdoc

  names = modules()
  # pdoc lists what a package's `__all__` lists.
  listed = [name.removeprefix("udp_jax.benchmark.") for name in names if "benchmark." in name]
  importlib.import_module("udp_jax.benchmark").__dict__["__all__"] = listed
  for name in names:
    for made in named_tuples(importlib.import_module(name)):
      # collections.namedtuple gives its constructors a module that does not exist, in which pdoc
      # would look for the types of the fields.
      made.__new__.__module__ = made.__module__
  pdoc.render.configure(docformat="google", footer_text="udp_jax")
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    # optax.OptState stands for a recursive type of chex, whose name only chex knows.
    warnings.filterwarnings("ignore", ".*optax.OptState.* Import of ArrayTree failed")
    pdoc.pdoc("udp_jax", output_directory=folder)
  return len(names)


def main() -> None:
  """Writes the pages into the folder of the command line."""
  folder = Path(sys.argv[1])
  print(f"{write(folder)} modules: {folder / 'index.html'}")


if __name__ == "__main__":
  main()
