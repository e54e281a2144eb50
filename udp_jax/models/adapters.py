"""Adds LoRA files and learned tokens, trained elsewhere, to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from udp_jax.errors import ConfigError
from udp_jax.models import learned_tokens, lora, lora_files, prompts
from udp_jax.models.base import Params
from udp_jax.models.tokenizer import Tokenizer


def add_tokens(
  tokenizer: Tokenizer, params: Params, files: Sequence[str]
) -> tuple[Params, dict[str, int]]:
  """Adds the tokens of embedding files to a model, like diffusers' `load_textual_inversion`.

  Args:
    tokenizer: the model's tokenizer, which gets the tokens in place.
    params: parameters, {"text_encoder": ...} and more.
    files: files of learned tokens, or folders with one such file.

  Returns:
    The new parameters, and the number of vectors of each token, for `spelled_out`.

  Raises:
    MissingDataError, BadDataError: a file is missing, damaged, or for another model.
    ConfigError: a token exists already, or has another size than the text encoder's.
  """
  sizes: dict[str, int] = {}
  for file in files:
    token, vectors = learned_tokens.load_learned_token(file)
    try:
      params = prompts.with_learned(tokenizer, params, token, vectors)
    except ConfigError as error:
      raise ConfigError(f"{file}: {error}") from error
    sizes[token] = len(vectors)
  return params, sizes


def add_loras(params: Params, files: Sequence[str], *, scale: float = 1.0) -> Params:
  """Merges the low-rank updates of all files, each scaled by `scale`, into the parameters.

  Raises:
    MissingDataError, BadDataError: a file is missing, damaged, or for another model.
  """
  for file in files:
    params = lora.merge_factors(lora_files.load_lora(file, params), params, scale=scale)
  return params


def spelled_out(text: str, sizes: Mapping[str, int]) -> str:
  """Rewrites a prompt so that tokens of several vectors read as the tokenizer knows them."""
  for token, size in sizes.items():
    text = prompts.spell_out(text, token, size)
  return text
