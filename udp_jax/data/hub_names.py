"""Names of models on the Hugging Face Hub, told from paths without asking the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_ADDRESS = re.compile(
  r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/([\w.-]+))?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".npz")


class HubName(NamedTuple):
  """A model on the Hub.

  Attributes:
    repo: "OWNER/NAME".
    revision: a branch, tag or commit; None for the newest.
  """

  repo: str
  revision: str | None = None


def parse(path: str | os.PathLike[str]) -> HubName | None:
  """Returns the name on the Hub that a path spells, or None for a path of this machine.

  "OWNER/NAME" is a path if it exists, or if a folder OWNER is here: a mistyped path is never asked
  for on the Hub. "OWNER/NAME@REVISION" is a path only if it exists. An address of the Hub's page
  is a name.

  >>> parse("owner/name@main"), parse("https://huggingface.co/owner/name")
  (HubName(repo='owner/name', revision='main'), HubName(repo='owner/name', revision=None))
  >>> parse("/models/sd15") is None and parse("models/v1-5.safetensors") is None
  True
  """
  text = os.fspath(path)
  if found := _ADDRESS.fullmatch(text):
    return HubName(found[1], found[2])
  found = _NAME.fullmatch(text)
  if not found or text.lower().endswith(_FILES) or Path(text).exists():
    return None
  if found[2] is None and Path(text).parent.is_dir():
    return None
  return HubName(found[1], found[2])


def is_pinned(path: str) -> bool:
  """Returns whether a text is a name with the hash of a commit, as records have it.

  >>> is_pinned("owner/name@" + 40 * "a"), is_pinned("owner/name@main")
  (True, False)
  """
  found = _NAME.fullmatch(path)
  return bool(found and found[2] and _COMMIT.fullmatch(found[2]))
