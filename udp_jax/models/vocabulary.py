"""Finds CLIP's vocabulary, which checkpoints of one file do not contain.

All models that `models.single_file` reads have the 49,408 tokens of CLIP (Radford et al.,
arXiv:2103.00020); they differ in the token that fills a prompt up. Places are looked through in
this order: the folder that is given, the checkpoint's own folder, the cache of the Hugging Face
Hub, packages that carry the vocabulary (open_clip, clip), and the Hub.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import os
from pathlib import Path

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import hub
from udp_jax.models.tokenizer import BOS, EOS, Tokenizer, alphabet, load_tokenizer

_log = logging.getLogger(__name__)

# The model whose folder has the vocabulary under its own name; any Stable Diffusion folder has it.
SOURCE = "openai/clip-vit-large-patch14"
_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_PACKAGES = ("open_clip", "clip")
_PACKED = "bpe_simple_vocab_16e6.txt.gz"
_SIZE = 49408
OPENCLIP_PAD = "!"


def find(
  given: str | os.PathLike[str] = "", *, beside: Path | None = None, pad: str = EOS
) -> Tokenizer:
  """Returns CLIP's tokenizer.

  Args:
    given: a folder with vocab.json and merges.txt or tokenizer.json, a model folder with
      tokenizer/, or a name on the Hub; "" looks through the places above.
    beside: the checkpoint's folder.
    pad: the token that fills prompts up, whatever the files say: `EOS` for OpenAI's encoder,
      `OPENCLIP_PAD` for OpenCLIP's.

  Raises:
    MissingDataError: the vocabulary is nowhere; says how to get it.
    BadDataError: it is damaged, or not CLIP's.
  """
  found = _find(given, beside)
  if len(found.vocab) != _SIZE:
    raise BadDataError(
      f"the vocabulary given or found has {len(found.vocab)} tokens, not CLIP's {_SIZE}, which "
      "checkpoints of one file have"
    )
  return Tokenizer(
    found.vocab, found.merges, special=found.special | {"pad_token": pad}, length=found.length
  )


def _find(given: str | os.PathLike[str], beside: Path | None) -> Tokenizer:
  if given:
    return load_tokenizer(_inside(hub.resolve(given, hub.TOKENIZER)))
  for folder in (beside, hub.cached(SOURCE, _FILES[:2])):
    if folder is not None and _has_vocabulary(inside := _inside(folder)):
      return load_tokenizer(inside)
  for package in _PACKAGES:
    if (file := _packed(package)) is not None:
      _log.info("CLIP's vocabulary: %s of the package %s", _PACKED, package)
      return from_merges(file)
  try:
    return load_tokenizer(hub.resolve(SOURCE, hub.TOKENIZER))
  except MissingDataError as error:
    wanted = " ".join(_FILES)
    raise MissingDataError(
      "a checkpoint of one file has no vocabulary, and none is here: give one with "
      "--tokenizer=FOLDER (config.model.tokenizer), such as the tokenizer/ of a Stable Diffusion "
      "folder, or run `pip install --no-deps open_clip_torch`, or on a machine with network access "
      f"`hf download {SOURCE} {wanted}`"
    ) from error


def from_merges(file: str | os.PathLike[str], size: int = _SIZE) -> Tokenizer:
  """Builds a tokenizer from OpenAI's compressed list of merges.

  Args:
    file: gzip of a heading and lines of two tokens, more of them than the vocabulary has.
    size: number of tokens: 256 bytes, 256 bytes at a word's end, merges, start and end.

  Raises:
    BadDataError: the file is damaged or too short.
  """
  try:
    with gzip.open(file, "rt", encoding="utf-8") as text:
      lines = text.read().split("\n")[1:]
    basic = alphabet()
    merges = [(first, second) for first, second in map(str.split, lines[: size - len(basic) - 2])]
  except (EOFError, OSError, UnicodeDecodeError, ValueError) as error:
    raise BadDataError(f"{file} is no list of CLIP's merges: {error}") from error
  tokens = [*basic, *(first + second for first, second in merges), BOS, EOS]
  if len(tokens) != size:
    raise BadDataError(f"{file} has {len(merges)} merges, too few for {size} tokens")
  return Tokenizer({token: i for i, token in enumerate(tokens)}, merges)


def _has_vocabulary(folder: Path) -> bool:
  return all((folder / name).is_file() for name in _FILES[:2])


def _inside(folder: Path) -> Path:
  return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _packed(package: str) -> Path | None:
  found = importlib.util.find_spec(package)
  for place in (found.submodule_search_locations or ()) if found else ():
    if (Path(place) / _PACKED).is_file():
      return Path(place) / _PACKED
  return None
