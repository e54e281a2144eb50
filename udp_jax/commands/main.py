"""The console script `udp-jax`: commands that need no checkout.

  udp-jax protect FOLDER [OUTPUT] --model=tiny_ldm --strength=gentle

Words without a flag stand for flags, and outputs have a default beside their input; the commands
are otherwise those of `python -m experiments.protect`, `.verify` and `.purify`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from udp_jax.commands import cli
from udp_jax.errors import ConfigError, MissingDataError

_SCREEN = """\
udp-jax makes pictures useless as training data for diffusion models, and checks it.

  udp-jax protect FOLDER [OUTPUT]    protect the pictures of a folder
  udp-jax verify PROTECTED [CLEAN]   check that no file changes by more than it may
  udp-jax purify FOLDER [OUTPUT]     what an infringer does first: JPEG, blur, IMPRESS, ...
  udp-jax page                       the same in a browser, on this machine
  udp-jax models [FOLDER]            which models are here, and what each protects against

For example:
  udp-jax protect photos --model=tiny_ldm --strength=medium
  udp-jax verify photos-protected

udp-jax COMMAND --help says more. Exit codes: 0 done; 1 a bug, or a broken budget; 2 a wrong
argument, or something is missing; 3 unusable data; 4 unusable output; 5 a loss is not finite.
"""
_PROTECT = """\
udp-jax protect FOLDER [OUTPUT] --model=MODEL [--strength=medium]

Protects the pictures of FOLDER, of any sizes, and writes them to OUTPUT (by default
FOLDER-protected) as PNG files with their names, metadata and captions. The clean reference is kept
in OUTPUT.work/clean. A stopped run goes on when the same command is given again, and pictures that
are added later are protected by it too."""
_VERIFY = """\
udp-jax verify PROTECTED [CLEAN]

Reads the files of both folders and checks every pixel: no value may differ by more than the budget
of PROTECTED's manifest, or --radius_255. CLEAN is PROTECTED.work/clean by default. Exit code 1: a
file does not keep the budget."""
_PURIFY = """\
udp-jax purify FOLDER [OUTPUT] --method=jpeg

Does to the pictures of FOLDER what an infringer may do first, and writes them to OUTPUT (by default
FOLDER-purified)."""
_MODELS = """\
udp-jax models [FOLDER]

Lists the models of this package and of the Hugging Face cache, what each protects against, and what
else --model takes. With FOLDER, or a .safetensors file: what is in it?"""
_NO_PAGE = "the page needs the extra `page`: pip install 'udp-jax[page]'"


class Command(NamedTuple):
  """A command of `udp-jax`, in the module of its name.

  Attributes:
    about: first paragraphs of its --help.
    places: flags that words without a flag fill.
    first: flags that --help lists.
    complete: fills flags that were not given.
  """

  about: str
  places: Sequence[str]
  first: Sequence[str]
  complete: Callable[[], None] = lambda: None


def _beside(ending: str) -> Callable[[], None]:
  """Returns a function that checks --input and sets --output to it with `ending` at its name."""

  def complete() -> None:
    from udp_jax.data import places

    asked: Any = flags.FLAGS
    if not asked.input or asked.input == "builtin":
      return
    folder = places.resolve(asked.input.removeprefix("folder:"))
    if folder.is_file() and folder.suffix != ".npz":
      raise ConfigError(f"{asked.input} is a file: give the folder that it is in")
    if not folder.exists() and ":" not in asked.input:
      raise MissingDataError(f"no folder {asked.input} is here")
    if asked.output is None and folder.is_dir() and folder.name:
      asked.output = str(folder.with_name(f"{folder.name}-{ending}"))

  return complete


def _clean_beside() -> None:
  from udp_jax.data import places

  asked: Any = flags.FLAGS
  if asked.protected and asked.clean is None:
    asked.clean = str(places.work_beside(asked.protected) / "clean")


COMMANDS = {
  "protect": Command(
    _PROTECT,
    ("input", "output"),
    ("model", "strength", "method", "spare_flat", "mask", "prompt", "overwrite"),
    _beside("protected"),
  ),
  "verify": Command(
    _VERIFY, ("protected", "clean"), ("clean", "radius_255", "json"), _clean_beside
  ),
  "purify": Command(
    _PURIFY,
    ("input", "output"),
    ("method", "option", "config", "model", "overwrite"),
    _beside("purified"),
  ),
  "models": Command(_MODELS, ("model",), ()),
}
PAGE = "page"


def main() -> None:
  """Runs the command that the first word of the command line names, and exits with its code."""
  words = sys.argv[1:]
  name = words[0] if words else "--help"
  if name in ("help", *cli.HELP):
    print(_SCREEN, end="")
    sys.exit(0 if words else 2)
  if name == "--version":
    print(f"udp-jax {importlib.metadata.version('udp-jax')}")
    sys.exit(0)
  if name == PAGE:
    sys.exit(_page(words[1:]))
  if name not in COMMANDS:
    known = ", ".join([*COMMANDS, PAGE])
    print(f"error: unknown command {name!r}; known: {known} (see --help)", file=sys.stderr)
    sys.exit(2)
  command = COMMANDS[name]
  module = importlib.import_module(f"udp_jax.commands.{name}")
  call = cli.Call(words[1:], command.about, command.places, command.first, command.complete)
  module.start(call)


def _page(words: Sequence[str]) -> int:
  """Starts the page with the words after `page`; returns the exit code."""
  try:
    page = importlib.import_module("udp_jax.page")
  except ModuleNotFoundError:
    print(f"error: {_NO_PAGE}", file=sys.stderr)
    return 2
  return page.main(words) or 0


if __name__ == "__main__":
  main()
