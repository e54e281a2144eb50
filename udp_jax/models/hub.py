"""Models from the Hugging Face Hub by name, through the `huggingface_hub` library.

The library's cache and token are the ones that everybody's tools use, and so are its environment
variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE). Only configs, tokenizers and safetensors are fetched,
and of the weights one variant: the plain one, or else fp16. `huggingface_hub` is imported only when
a name has to be looked up (extra `hub`).
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from udp_jax.data import hub_names
from udp_jax.data.hub_names import HubName
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.runtime import files

_log = logging.getLogger(__name__)

# What is wanted of a repository.
MODEL, TOKENIZER = "model", "tokenizer"
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_WEIGHTS = re.compile(
  r"(?:diffusion_pytorch_model|model)(\.fp16)?(?:-\d+-of-\d+)?\.safetensors(?:\.index(\.fp16)?\.json)?"
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_PLAIN = re.compile(
  r"model_index\.json|scheduler/scheduler_config\.json|(?:tokenizer(?:_2)?/)?(?:vocab\.json|"
  r"merges\.txt|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json)"
)

Check = Callable[[Path], Any]


def resolve(path: str | os.PathLike[str], what: str = MODEL, check: Check | None = None) -> Path:
  """Returns the place of a model: a path with `~` expanded, or the folder of a name on the Hub.

  Args:
    path: a path, or a name as `data.hub_names.parse` knows them, which is fetched if needed.
    what: `MODEL`, or `TOKENIZER` for a vocabulary alone.
    check: looks at the folder of configs and raises before any weights are fetched.

  Raises:
    MissingDataError: the Hub does not have the model, cannot be reached, or wants a login; or
      `huggingface_hub` is not installed. Says what to run.
    ConfigError: the repository holds no model in diffusers' layout.
  """
  name = hub_names.parse(path)
  return Path(path).expanduser() if name is None else _folder(name, what, check)


def pinned(path: str, what: str = MODEL, check: Check | None = None) -> str:
  """Returns "OWNER/NAME@COMMIT" for a name on the Hub, and any path as it is.

  Raises:
    MissingDataError, ConfigError: as `resolve`.
  """
  name = hub_names.parse(path)
  return path if name is None else f"{name.repo}@{_folder(name, what, check).name}"


def cached(repo: str, names: Iterable[str]) -> Path | None:
  """Returns the folder of the Hub's cache with all these files of a model, if it is there."""
  try:
    from huggingface_hub import try_to_load_from_cache
  except ImportError:
    return None
  found = [try_to_load_from_cache(repo, name) for name in names]
  paths = [Path(place) for place in found if isinstance(place, str)]
  return paths[0].parent if paths and len(paths) == len(found) else None


def of_snapshot(folder: Path) -> str | None:
  """Returns "OWNER/NAME" of a folder in the Hub's cache, None for other folders."""
  if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
    return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
  return None


def command(repo: str, revision: str | None = None) -> str:
  """Returns the command line that brings a model into the Hub's cache."""
  which = f" --revision {revision}" if revision else ""
  return f'`hf download {repo}{which} --include "*.json" "*.txt" "*.safetensors"`'


def chosen(names: Collection[str], repo: str = "the repository", what: str = MODEL) -> list[str]:
  """Returns the files to fetch: configs, tokenizers, and one variant of each part's weights.

  Args:
    names: all files of the repository.
    repo: its name, for error messages.
    what: `MODEL` or `TOKENIZER`.

  Raises:
    ConfigError: it holds neither a diffusers folder nor one of its parts.
    MissingDataError: a part's weights are there only as pickles.
  """
  plain = [name for name in names if _PLAIN.fullmatch(name)]
  if what == TOKENIZER:
    return sorted(name for name in plain if not name.startswith(("model_index", "scheduler/")))
  parts = [part for part in _PARTS if f"{part}/config.json" in names]
  if not parts and "config.json" in names:
    parts = [""]  # A DDPM or a VAE alone.
  if not parts and "model_index.json" in names:
    # A pipeline without a U-Net: its configs say what it is.
    return sorted([*plain, *(name for name in names if name.endswith("/config.json"))])
  if not parts:
    single = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    hint = "".join(
      f"; for one of its files run `hf download {repo} {name}` and give the file's path"
      for name in single[:1]
    )
    raise ConfigError(
      f"{repo} on the Hub is no diffusers folder: it has no unet/config.json, nor a "
      f"config.json{hint}"
    )
  found = list(plain)
  for part in parts:
    place = f"{part}/" if part else ""
    inside = [name for name in names if name.rpartition("/")[0] == part]
    weights = {name: m for name in inside if (m := _WEIGHTS.fullmatch(name.rpartition("/")[2]))}
    full = [name for name, m in weights.items() if not (m[1] or m[2])]
    if not weights and (pickles := [name for name in inside if name.endswith(_PICKLES)]):
      raise MissingDataError(
        f"{repo} has {pickles[0]} only, a pickle, which is never opened here because it can run "
        "code: look for a repository with safetensors, or convert it where PyTorch diffusers is "
        "installed, with from_pretrained and save_pretrained"
      )
    found += [f"{place}config.json", *(full or weights)]
  return sorted(found)


@functools.cache  # One look-up a run: the newest revision stays the same throughout.
def _folder(name: HubName, what: str, check: Check | None) -> Path:
  try:
    import huggingface_hub as library
  except ImportError as error:
    raise MissingDataError(
      f"no folder {name.repo} is here, and for the model of that name on the Hugging Face Hub the "
      "library huggingface_hub is missing: pip install 'udp-jax[hub]', or run "
      f"`hf download {name.repo} --local-dir FOLDER` elsewhere and give FOLDER"
    ) from error
  fixed = name.revision is not None and hub_names.is_pinned(f"{name.repo}@{name.revision}")
  here = _in_cache(library, name, what)
  if here is not None and fixed:
    return here
  try:
    return _fetched(library, name, what, check)
  except _errors() as error:
    if here is None:
      raise _explained(library, name, error) from error
    why = str(error).strip().splitlines() or [type(error).__name__]
    _log.warning(
      "warning: the Hub did not answer for %s (%s); taking revision %s from the cache",
      name.repo,
      why[0][:120],
      here.name,
    )
    return here


def _fetched(library: Any, name: HubName, what: str, check: Check | None) -> Path:
  info = library.HfApi().model_info(name.repo, revision=name.revision)
  wanted = chosen([entry.rfilename for entry in info.siblings or []], name.repo, what)
  light = [file for file in wanted if not file.endswith(".safetensors")]

  def fetch(patterns: list[str]) -> Path:
    return Path(
      library.snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns)
    )

  folder = fetch(light)
  if check is not None:
    check(folder)
  return folder if light == wanted else fetch(wanted)


def _in_cache(library: Any, name: HubName, what: str) -> Path | None:
  """Returns the folder of a name in the cache if it has all that is wanted."""
  try:
    folder = Path(
      library.snapshot_download(name.repo, revision=name.revision, local_files_only=True)
    )
  except (OSError, ValueError):
    return None
  names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
  return folder if _is_whole(folder, names, what) else None


def _is_whole(folder: Path, names: Collection[str], what: str) -> bool:
  if what == TOKENIZER:
    return any(name.endswith(("merges.txt", "tokenizer.json")) for name in names)
  try:
    wanted = chosen(names)
  except (ConfigError, MissingDataError):
    return False
  index = files.read_json(folder / "model_index.json") if "model_index.json" in names else {}
  promised = [name for name, entry in index.items() if isinstance(entry, list) and entry[0]]
  homes = {name.rpartition("/")[0] for name in wanted}
  if any(part in promised and part not in homes for part in (*_TOKENIZERS, "scheduler")):
    return False
  weighed = {name.rpartition("/")[0] for name in wanted if name.endswith(".safetensors")}
  parts = {part for part in _PARTS if part in promised or f"{part}/config.json" in names}
  return (parts or {""}) <= weighed


def _errors() -> tuple[type[Exception], ...]:
  """Returns what the library raises where the Hub refuses or cannot be reached."""
  kinds: list[type[Exception]] = [OSError]
  try:
    import httpx  # Of huggingface_hub 1 and later; earlier ones raise errors of `requests`.

    kinds.append(httpx.HTTPError)
  except ImportError:
    pass
  return tuple(kinds)


def _explained(library: Any, name: HubName, error: Exception) -> MissingDataError:
  kinds, repo = library.errors, name.repo
  missing = f"no folder {repo} is here, and"
  if isinstance(error, kinds.GatedRepoError):
    return MissingDataError(
      f"{repo} is gated on the Hugging Face Hub: accept its terms on its page "
      f"(huggingface.co/{repo}), log in with `hf auth login`, and try again"
    )
  if isinstance(error, kinds.RevisionNotFoundError):
    return MissingDataError(f"{repo} on the Hugging Face Hub has no revision {name.revision!r}")
  if isinstance(error, kinds.RepositoryNotFoundError):
    return MissingDataError(
      f"{missing} the Hugging Face Hub has no model of that name (a private one needs "
      "`hf auth login`)"
    )
  return MissingDataError(
    f"{missing} {repo} is not, or not whole, in the cache of the Hugging Face Hub, which cannot be "
    f"reached: on a machine with network access run {command(repo, name.revision)} and copy its "
    "cache (HF_HOME), or download with `--local-dir FOLDER` and give FOLDER"
  )
