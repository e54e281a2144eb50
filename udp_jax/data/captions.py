"""Captions of pictures, from the metadata.jsonl of Hugging Face's "imagefolder" layout."""

from __future__ import annotations

import os
from pathlib import Path

from udp_jax.data import files
from udp_jax.errors import BadDataError

FILE = "metadata.jsonl"


def read_captions(folder: str | os.PathLike) -> dict[str, str]:
  """Captions by relative path, of the folder's metadata.jsonl; empty without that file.

  Each of its lines is an object with "file_name" (a path below the folder) and "text".

  Raises:
    BadDataError: a line is no such object.
  """
  path = Path(folder) / FILE
  if not path.is_file():
    return {}
  captions: dict[str, str] = {}
  try:
    lines = path.read_text("utf-8").split("\n")  # Not at U+2028 inside a text.
  except (OSError, UnicodeDecodeError) as error:
    raise BadDataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      entry = files.parse_json(line)
      name, text = entry["file_name"], entry["text"]
    except (ValueError, KeyError, TypeError) as error:
      raise BadDataError(
        f'{path}: line {number} is not an object with "file_name" and "text"'
      ) from error
    if not isinstance(name, str) or not isinstance(text, str):
      raise BadDataError(f'{path}: line {number}: "file_name" and "text" must be texts')
    captions[name] = text
  return captions
