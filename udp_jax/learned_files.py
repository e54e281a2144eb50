"""What was learned of a model elsewhere, added to it: LoRA files and learned tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from udp_jax import prompts
from udp_jax.errors import ConfigError
from udp_jax.models import learned_tokens, lora
from udp_jax.models.base import Params
from udp_jax.models.tokenizer import Tokenizer


def add_tokens(
  tokenizer: Tokenizer, params: Params, files: Sequence[str]
) -> tuple[Params, dict[str, int]]:
  """Parameters that know the tokens of embedding files, as diffusers' `load_textual_inversion`.

  Args:
    tokenizer: gets the tokens; changed in place.
    params: {"text_encoder": ...} and more.
    files: of `learned_tokens`, or folders with one.

  Returns:
    The parameters, and how many vectors each token stands for, see `spelled_out`.

  Raises:
    MissingDataError, BadDataError: see `learned_tokens.load_learned_token`.
    ConfigError: a token that is there already, or is not of this text encoder's size.
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
  """Parameters with the low-rank updates of all files merged in, each times `scale`.

  Raises:
    MissingDataError, BadDataError: see `lora.load_lora`.
  """
  for file in files:
    params = lora.merge_factors(lora.load_lora(file, params), params, scale=scale)
  return params


def spelled_out(text: str, sizes: Mapping[str, int]) -> str:
  """A prompt whose tokens of several vectors are written as the tokenizer knows them."""
  for token, size in sizes.items():
    text = prompts.spell_out(text, token, size)
  return text
