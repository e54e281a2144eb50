"""Reads and writes files of learned tokens (textual inversion) in PyTorch diffusers' format.

`learned_embeds.safetensors` holds one tensor under the token's name: (D,), or (N, D) for a token of
N vectors, which `pipe.load_textual_inversion(folder)` names `<token>`, `<token>_1`, ...
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.models.lora_files import read_tensors, write_tensors

FILE_NAME = "learned_embeds.safetensors"


def save_learned_token(
  folder: str | os.PathLike, token: str, embedding: np.ndarray, *, name: str = FILE_NAME
) -> Path:
  """Writes a file that PyTorch diffusers' `pipe.load_textual_inversion(folder)` opens.

  Args:
    folder: the folder, created if needed.
    token: the token's name, such as "<my-style>".
    embedding: (D,) or (N, D), the token's vectors.
    name: the file's name.

  Returns:
    The file's path.

  Raises:
    OutputError: the file cannot be written.
  """
  value = np.asarray(embedding, np.float32)
  value = value[0] if value.ndim == 2 and len(value) == 1 else value
  path = Path(folder) / name
  write_tensors(path, {token: np.ascontiguousarray(value)})
  return path


def load_learned_token(path: str | os.PathLike) -> tuple[str, np.ndarray]:
  """Reads (token, float32 (N, D)) from a file, or from a folder's `learned_embeds.safetensors`.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the file is damaged, or does not hold exactly one token.
  """
  path = Path(path)
  path = path / FILE_NAME if path.is_dir() else path
  tensors, _ = read_tensors(path)
  if len(tensors) != 1:
    raise BadDataError(f"{path} holds {len(tensors)} tensors; a learned token is one")
  ((token, value),) = tensors.items()
  if value.ndim not in (1, 2):
    raise BadDataError(f"{path}: {token} has shape {value.shape}, not (D,) or (N, D)")
  return token, np.atleast_2d(np.asarray(value, np.float32))
