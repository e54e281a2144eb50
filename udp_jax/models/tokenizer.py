"""CLIP's tokenizer (Radford et al., arXiv:2103.00020), loaded from the files of a model folder.

It uses lower-cased byte-level byte-pair encoding with "</w>" at the end of words, through the
`tokenizers` library, and gives the same ids as transformers' `CLIPTokenizerFast` (`CLIPTokenizer`
from transformers 5 on). The older `CLIPTokenizer`, in Python, also drops control characters and
adds spaces around Chinese characters.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.runtime import files

_log = logging.getLogger(__name__)

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_DEFAULTS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}


def spelled(token: str, num_vectors: int) -> list[str]:
  """Returns the names that diffusers gives a token of several vectors: <t>, <t>_1, <t>_2, ..."""
  return [token] + [f"{token}_{i}" for i in range(1, num_vectors)]


class Tokenizer:
  """Converts prompts to token ids: start, words, end, padding.

  Attributes:
    vocab: token -> id, without added tokens.
    merges: pairs of tokens, in order of precedence.
    special: bos_token, eos_token, unk_token and pad_token. Stable Diffusion 2.x pads with "!".
    added: tokens added to the vocabulary, with their ids.
    length: number of ids in each row, 77 for CLIP.
  """

  def __init__(
    self,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    special: Mapping[str, str] | None = None,
    added: Mapping[str, int] | None = None,
    length: int = 77,
  ):
    self.vocab, self.merges, self.length = dict(vocab), list(merges), length
    self.special = _DEFAULTS | dict(special or {})
    self.added: dict[str, int] = {}
    if lost := [token for token in self.special.values() if token not in {*vocab, *(added or ())}]:
      raise BadDataError(f"special token {lost[0]!r} is not in the tokenizer's vocabulary")
    try:
      bpe = models.BPE(
        vocab=self.vocab,
        merges=self.merges,
        unk_token=self.special["unk_token"],
        end_of_word_suffix=_WORD_END,
      )
    except Exception as error:  # tokenizers raises no more specific type.
      raise BadDataError(f"the tokenizer's merges do not fit its vocabulary: {error}") from error
    self._inner = _with_pipeline(bpe)
    special_tokens = sorted(set(self.special.values()))
    self._inner.add_special_tokens(
      [tokenizers.AddedToken(t, normalized=False) for t in special_tokens if t in vocab]
    )
    for token, wanted in sorted((added or {}).items(), key=lambda item: item[1]):
      if token not in self.vocab and self.add_token(token) != wanted:
        raise BadDataError(f"added token {token!r} should have id {wanted}: ids have gaps")

  def __len__(self) -> int:
    """Returns the size of the vocabulary, including added tokens."""
    return len(self.vocab) + len(self.added)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes prompts; a prompt longer than `length` is cut, with a logged warning.

    Args:
      texts: N prompts in any case; "" is the unconditional prompt.

    Returns:
      (N, length) int32 token ids.
    """
    if isinstance(texts, str):
      raise TypeError("a list of prompts is wanted, not one")
    bos, eos, pad = (self.token_id(self.special[f"{k}_token"]) for k in ("bos", "eos", "pad"))
    ids = np.full((len(texts), self.length), pad, np.int32)
    cut = 0
    for row, encoding in zip(ids, self._inner.encode_batch(list(texts), add_special_tokens=False)):
      words = encoding.ids[: self.length - 2]
      cut += len(words) < len(encoding.ids)
      row[: len(words) + 2] = [bos, *words, eos]
    if cut:
      _log.warning("%d of %d prompts were cut to %d tokens", cut, len(texts), self.length)
    return ids

  def token_id(self, token: str) -> int:
    """Returns a token's id. Raises ConfigError if the vocabulary does not have the token."""
    if (found := self._inner.token_to_id(token)) is None:
      raise ConfigError(f"no token {token!r} in the tokenizer's vocabulary")
    return found

  def add_token(self, token: str) -> int:
    """Adds one token, such as "<my-style>", which prompts must spell exactly; returns its id.

    Raises:
      ConfigError: the token is empty or exists already.
    """
    if not token.strip() or self._inner.token_to_id(token) is not None:
      raise ConfigError(f"token {token!r} is empty or already in the tokenizer's vocabulary")
    self._inner.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    self.added[token] = self._inner.token_to_id(token)
    return self.added[token]

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the files that transformers' `CLIPTokenizer.from_pretrained(folder)` opens.

    Raises:
      OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    with files.output_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
    marks = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {token: self.token_id(token) for token in self.special.values()}
    decoder = {
      str(id_): {"content": token, "special": token in special, **marks}
      for token, id_ in sorted((special | self.added).items(), key=lambda item: item[1])
    }
    config = {
      **self.special,
      "added_tokens_decoder": decoder,
      "clean_up_tokenization_spaces": False,
      "do_lower_case": True,
      "errors": "replace",
      "model_max_length": self.length,
      "tokenizer_class": "CLIPTokenizer",
    }
    merges = "".join(f"{first} {second}\n" for first, second in self.merges)
    texts = {
      "vocab.json": json.dumps(self.vocab, ensure_ascii=False) + "\n",
      "merges.txt": "#version: 0.2\n" + merges,
      "special_tokens_map.json": json.dumps(self.special, indent=2) + "\n",
      "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }
    if self.added:
      texts["added_tokens.json"] = json.dumps(self.added, indent=2, ensure_ascii=False) + "\n"
    files.write_together({folder / name: _writer(text) for name, text in texts.items()})


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
  """Reads a CLIP tokenizer from a folder (a pipeline's `tokenizer/`).

  It reads vocab.json and merges.txt or, if they are missing, tokenizer.json (all that transformers
  5 writes), and tokenizer_config.json, special_tokens_map.json and added_tokens.json if present. As
  in transformers, special_tokens_map.json applies only if tokenizer_config.json has no
  added_tokens_decoder.

  Raises:
    MissingDataError: the folder has no vocabulary.
    BadDataError: a file is damaged, or the vocabulary is not CLIP's kind.
  """
  folder = Path(folder)
  added: dict[str, int] = {}
  try:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
      vocab: Mapping[str, int] = files.read_json(folder / "vocab.json")
      lines = (folder / "merges.txt").read_text("utf-8").strip().split("\n")
      merges = [_pair(line) for line in lines if not line.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
      content = files.read_json(folder / "tokenizer.json")
      vocab = content["model"]["vocab"]
      merges = [_pair(pair) for pair in content["model"]["merges"]]
      added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
    else:
      raise MissingDataError(
        f"no tokenizer in {folder}: looked for vocab.json with merges.txt, and for tokenizer.json"
      )
    config = _read(folder / "tokenizer_config.json")
    added |= _read(folder / "added_tokens.json")
    decoder = config.get("added_tokens_decoder")
    named = config if decoder else config | _read(folder / "special_tokens_map.json")
    added |= {_content(token): int(id_) for id_, token in (decoder or {}).items()}
    special = {name: _content(named[name]) for name in _DEFAULTS if named.get(name)}
    # Some folders write 10 ** 30 for "no limit".
    length = config.get("model_max_length", 77)
    return Tokenizer(
      vocab, merges, special=special, added=added, length=length if length < 10**6 else 77
    )
  except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
    raise BadDataError(f"the tokenizer in {folder} is damaged: {error!r}") from error
  except BadDataError as error:
    raise BadDataError(f"{folder}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, length: int = 77) -> Tokenizer:
  """Trains a tokenizer of CLIP's kind with its own vocabulary.

  The vocabulary is ordered like CLIP's: 256 bytes, 256 bytes at a word's end, merges, start, end.

  Args:
    texts: texts in which pairs are counted.
    vocab_size: maximum number of tokens, at least 514.
    length: number of ids in an encoded prompt.
  """
  if vocab_size < 514:
    raise ConfigError(f"a vocabulary of {vocab_size} tokens cannot hold 2 * 256 bytes and 2 marks")
  basic = alphabet()
  inner = _with_pipeline(models.BPE(end_of_word_suffix=_WORD_END))
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=basic[:256],
    end_of_word_suffix=_WORD_END,
    show_progress=False,
  )
  inner.train_from_iterator(texts, trainer)
  merges = [_pair(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
  merges = merges[: vocab_size - len(basic) - 2]
  tokens = dict.fromkeys([*basic, *(first + second for first, second in merges), BOS, EOS])
  return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, length=length)


def alphabet() -> list[str]:
  """Returns CLIP's first 512 tokens: the 256 bytes, and the same at the end of a word."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  return [*letters, *(letter + _WORD_END for letter in letters)]


def _with_pipeline(bpe: models.BPE) -> tokenizers.Tokenizer:
  inner = tokenizers.Tokenizer(bpe)
  spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
  inner.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
  words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
  as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  inner.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
  return inner


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
  first, second = merge.split() if isinstance(merge, str) else merge
  return first, second


def _content(token: str | Mapping[str, Any]) -> str:
  return token if isinstance(token, str) else token["content"]


def _read(path: Path) -> dict[str, Any]:
  return files.read_json(path) if path.is_file() else {}


def _writer(text: str):
  return lambda path: path.write_text(text, "utf-8")
