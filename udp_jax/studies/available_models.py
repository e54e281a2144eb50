"""Which models are on this machine, and what each protects against; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from udp_jax.models import places
from udp_jax.runtime import files
from udp_jax.studies import rows, settings
from udp_jax.studies.configs.eudp import folder

_PREFIX = "models--"


def describe(name: str, path: str) -> str:
  """Returns a few lines on a model: its class, what it protects against, and how it is given.

  Args:
    name: what it is called.
    path: as for --model.

  Raises:
    ConfigError, MissingDataError, BadDataError: as `models.places.kind_of`.
  """
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


def available() -> Iterator[tuple[str, str]]:
  """Yields (name, what --model takes) of the models of the package and of the cache."""
  yield from ((name, name) for name in places.PACKAGED)
  yield from cached(hub_cache())
