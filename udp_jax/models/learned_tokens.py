"""Files of learned tokens (textual inversion), as PyTorch diffusers reads and writes them.

`learned_embeds.safetensors` holds one tensor by the token's name: (D,), or (N, D) for a token that
stands for N vectors, which `pipe.load_textual_inversion(folder)` spells `<token>`, `<token>_1`, ...
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.models.lora import read_tensors, write_tensors

FILE_NAME = "learned_embeds.safetensors"


def spelled(token: str, num_vectors: int) -> list[str]:
  """The names under which diffusers adds a token of several vectors: <t>, <t>_1, <t>_2, ..."""
  return [token] + [f"{token}_{i}" for i in range(1, num_vectors)]


def save_learned_token(
  folder: str | os.PathLike, token: str, embedding: np.ndarray, *, name: str = FILE_NAME
) -> Path:
  """Writes a file that PyTorch diffusers' `pipe.load_textual_inversion(folder)` opens.

  Args:
    folder: made if need be.
    token: such as "<my-style>".
    embedding: (D,) or (N, D).
    name: of the file.

  Returns:
    The file's path.

  Raises:
    OutputError: the place cannot be written.
  """
  value = np.asarray(embedding, np.float32)
  value = value[0] if value.ndim == 2 and len(value) == 1 else value
  path = Path(folder) / name
  write_tensors(path, {token: np.ascontiguousarray(value)})
  return path


def load_learned_token(path: str | os.PathLike) -> tuple[str, np.ndarray]:
  """(token, float32 (N, D)) from a file, or from a folder with `learned_embeds.safetensors`.

  Raises:
    MissingDataError: there is no such file.
    BadDataError: it is damaged, or holds something else than one token.
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
