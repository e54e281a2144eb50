"""Says which models are here and what each protects against: the main of `udp-jax models`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from udp_jax.commands import cli

_MODEL = flags.DEFINE_string("model", None, "A folder, or a name: what is it?")
_PREFIX = "models--"
_MORE = """\
More models, on a machine with network access:
  hf download OWNER/NAME --local-dir FOLDER    Stable Diffusion 1.x or 2.x, or a DDPM
  udp-jax models FOLDER                        what is it?
  udp-jax protect PICTURES --model=FOLDER"""


def main(argv: Sequence[str]) -> int:
  """Prints what a model is, or all models that are here; returns the exit code."""
  del argv
  from udp_jax.data import naming
  from udp_jax.errors import UserError
  from udp_jax.models import places

  if _MODEL.value:
    print(naming.printable(describe(_MODEL.value, _MODEL.value)))
    return 0
  here = [(name, name) for name in places.PACKAGED] + list(cached(hub_cache()))
  for name, path in here:
    try:
      said = describe(name, path)
    except UserError as error:
      said = f"{name}\n  not supported: {' '.join(str(error).split())}"
    print(naming.printable(said), end="\n\n")
  print(f"Models of the Hugging Face cache are looked for in {hub_cache()}.\n{_MORE}")
  return 0


def describe(name: str, path: str) -> str:
  """Returns a few lines on a model: its class, what it protects against, and how it is given.

  Args:
    name: what it is called.
    path: as for --model.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `models.places.kind_of`.
  """
  from udp_jax.models import places
  from udp_jax.runtime import files
  from udp_jax.studies import rows, settings
  from udp_jax.studies.configs.eudp import folder

  kind = places.kind_of(path)
  index = places.resolve(path) / "model_index.json"
  named = files.read_json(index).get("_class_name") if index.is_file() else None
  latent = "a latent diffusion model" if kind == places.LATENT else "a diffusion model of pixels"
  config = settings.frozen(folder.get_config(), {"model.path": path})
  return "\n".join(
    [
      f"{name}: {latent}{f' ({named})' if named else ''}",
      f"  protects against: {rows.against(config, 'eudp')['statement']}",
      f"  --model={path}",
    ]
  )


def hub_cache() -> Path:
  """Returns the folder where Hugging Face's tools keep what they have downloaded."""
  given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
  if given:
    return Path(given).expanduser()
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return Path(os.environ.get("HF_HOME") or f"{home}/huggingface").expanduser() / "hub"


def cached(hub: Path) -> Iterator[tuple[str, str]]:
  """Yields (OWNER/NAME at a revision, folder) of every model in a cache that is a pipeline."""
  for index in sorted(hub.glob(f"{_PREFIX}*/snapshots/*/model_index.json")):
    snapshot = index.parent
    name = snapshot.parents[1].name.removeprefix(_PREFIX).replace("--", "/")
    yield f"{name} at {snapshot.name[:7]}", str(snapshot)


def start(call: cli.Call | None = None) -> None:
  """Runs `main`, as `udp-jax` calls it."""
  cli.run(main, several=False, call=call)
