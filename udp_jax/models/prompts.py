"""Prompts of pictures: captions as token ids or embeddings, and names for learned concepts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from udp_jax.data import captions as captions_lib
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models import pipeline, trainable
from udp_jax.models.base import Params
from udp_jax.models.tokenizer import Tokenizer, spelled

# Neutral sentences around a learned word, after Gal et al., arXiv:2208.01618, appendix.
TEMPLATES: dict[str, tuple[str, ...]] = {
  "object": (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a photo of a nice {}",
  ),
  "style": (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a bright painting in the style of {}",
    "a close-up painting in the style of {}",
    "a good painting in the style of {}",
  ),
}


@functools.cache
def token_ids(
  folder: str, text: str, choices: pipeline.Choices = pipeline.Choices()
) -> tuple[int, ...]:
  """Returns (L,) token ids of a prompt, by the tokenizer of a model.

  Args:
    folder: as for `pipeline.load_pipeline`.
    text: the prompt.
    choices: as for `pipeline.load_pipeline`.

  Raises:
    ConfigError: the model has no tokenizer.
    MissingDataError: a checkpoint of one file has none, and no vocabulary is found.
    BadDataError: the tokenizer is damaged.
  """
  place = pipeline.resolve(folder) if folder else None
  if place is None or not (place.is_file() or (place / "tokenizer").is_dir()):
    raise ConfigError(
      f"prompt {text!r} needs a model with text: there is no tokenizer in {folder!r}"
    )
  return tuple(pipeline.tokenizer_of(place, choices)([text])[0].tolist())


def captions_of(pictures: ImageSet, source: str, prompt: str = "") -> list[str]:
  """Returns one caption per picture: `prompt` for all, or the folder's (`data.captions`).

  Args:
    pictures: pictures of a folder, or of any source if there is a prompt.
    source: source of the pictures, as for `data.sources.load`.
    prompt: one prompt for all pictures; "" reads the folder's captions.

  Raises:
    ConfigError: there are no captions and no prompt.
    BadDataError: captions are damaged, or a picture has none.
  """
  if prompt:
    return [prompt] * len(pictures.images)
  place = source.removeprefix("folder:")
  files = [entry.file for entry in pictures.metadata or ()]
  known = captions_lib.read_captions(place, files) if files else {}
  if not known:
    raise ConfigError(
      f"{source}: no captions; give --prompt, or a metadata.jsonl in the folder with a line "
      '{"file_name": ..., "text": ...} for each picture (or metadata.csv, or a .txt beside each)'
    )
  if lost := [name for name in files if name not in known]:
    raise BadDataError(f"{place}: no caption of {lost[0]} ({len(lost)} of {len(files)} missing)")
  return [known[name] for name in files]


def learn_token(
  tokenizer: Tokenizer, token: str, init_word: str, num_vectors: int = 1
) -> tuple[list[int], int]:
  """Adds a new token, to be learned, to a tokenizer.

  Args:
    tokenizer: the tokenizer, which gets `token`, and `token_1`, ... for further vectors.
    token: the new token, such as "<my-style>".
    init_word: word of the vocabulary whose embedding the token starts from.
    num_vectors: number of vectors of the token, at least 1.

  Returns:
    The ids of the new tokens, and the id of the word.

  Raises:
    ConfigError: the token exists already, or the word is not a single token.
  """
  if num_vectors < 1:
    raise ConfigError(f"a learned token has at least 1 vector, not {num_vectors}")
  ids = tokenizer([init_word])[0]
  end = tokenizer.token_id(tokenizer.special["eos_token"])
  words = int(np.argmax(ids == end)) - 1
  if words != 1:
    raise ConfigError(
      f"init_word {init_word!r} is {words} tokens of this vocabulary; choose a word that is one"
    )
  return [tokenizer.add_token(name) for name in spelled(token, num_vectors)], int(ids[1])


def spell_out(text: str, token: str, num_vectors: int) -> str:
  """Writes a token of several vectors in `text` as diffusers does: "<t> <t>_1 <t>_2"."""
  return text.replace(token, " ".join(spelled(token, num_vectors)))


def templates(kind: str, token: str, num_vectors: int = 1) -> list[str]:
  """Returns the sentences of `TEMPLATES` about a learned token.

  Raises:
    ConfigError: the kind is unknown.
  """
  if kind not in TEMPLATES:
    raise ConfigError(f"unknown kind of concept {kind!r}; known: {', '.join(TEMPLATES)}")
  return [spell_out(text.format(token), token, num_vectors) for text in TEMPLATES[kind]]


def with_learned(
  tokenizer: Tokenizer, params: Params, token: str, embedding: np.ndarray
) -> Mapping[str, Any]:
  """Adds a learned token to `tokenizer` and returns `params` that include its embedding.

  Args:
    tokenizer: the model's tokenizer, changed in place.
    params: {"text_encoder": ...} and more.
    token: the learned token, from `learned_tokens.load_learned_token`.
    embedding: (N, D), the token's vectors.

  Raises:
    ConfigError: the token exists already, or its vectors do not fit the text encoder.
  """
  size, width = trainable.token_table(params).shape
  if embedding.shape[1] != width:
    raise ConfigError(
      f"{token} has vectors of {embedding.shape[1]} values, the model's have {width}"
    )
  ids = [tokenizer.add_token(name) for name in spelled(token, len(embedding))]
  if ids[0] != size:
    raise ConfigError(f"the tokenizer's {ids[0]} tokens are not the text encoder's {size}")
  return trainable.token_embedding(ids, 0).merge(np.asarray(embedding, np.float32), params)
