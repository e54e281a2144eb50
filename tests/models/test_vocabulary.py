"""Where CLIP's vocabulary is found for checkpoints of one file."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import hub, vocabulary
from udp_jax.models.tokenizer import alphabet, load_tokenizer


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
  """No cache, package or network that has the vocabulary."""
  monkeypatch.setattr(hub, "cached", lambda *_: None)
  monkeypatch.setattr(vocabulary, "_packed", lambda _: None)

  def offline(*_: object) -> Path:
    raise MissingDataError("the Hub cannot be reached")

  monkeypatch.setattr(vocabulary.hub, "resolve", offline)


def merges_file(path: Path, count: int = 48894 + 100) -> Path:
  """A list of merges as OpenAI packs it: a heading, pairs, and more of them than are used."""
  letters = alphabet()[:256]
  pairs = [f"{a} {b}" for a in letters for b in letters][:count]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *pairs]).encode()))
  return path


def test_packed_merges(tmp_path: Path) -> None:
  made = vocabulary.from_merges(merges_file(tmp_path / "merges.gz"))
  assert len(made.vocab) == 49408
  # Bytes first, then bytes at a word's end, merges in their order, start and end: CLIP's ids.
  assert made.token_id("!") == 0 and made.token_id("!</w>") == 256
  assert made.token_id("!!") == 512 and made.token_id("<|startoftext|>") == 49406
  assert made([""])[0, :3].tolist() == [49406, 49407, 49407]
  for content in (gzip.compress(b"#\na b c\n"), b"no gzip"):
    (tmp_path / "bad.gz").write_bytes(content)
    with pytest.raises(BadDataError, match="no list of CLIP's merges"):
      vocabulary.from_merges(tmp_path / "bad.gz")
  with pytest.raises(BadDataError, match="too few for 49408 tokens"):
    vocabulary.from_merges(merges_file(tmp_path / "short.gz", 100))


def test_the_order_of_places(
  nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline_folder: Path
) -> None:
  whole = vocabulary.from_merges(merges_file(tmp_path / "merges.gz"))
  with pytest.raises(MissingDataError, match="--tokenizer=FOLDER .*hf download openai/clip"):
    vocabulary.find()
  # A package that carries it.
  monkeypatch.undo()
  monkeypatch.setattr(hub, "cached", lambda *_: None)
  packed = merges_file(tmp_path / "site" / "open_clip" / "bpe_simple_vocab_16e6.txt.gz")
  (packed.parent / "__init__.py").write_text("raise RuntimeError('never imported')")
  monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
  assert vocabulary.find().vocab == whole.vocab
  assert vocabulary.find(pad="!")(["b"])[0, -1] == 0
  # The folder of the checkpoint before it, whose tokenizer fills up as the model wants.
  whole.special["pad_token"] = "!"
  whole.save(tmp_path / "beside" / "tokenizer")
  assert load_tokenizer(tmp_path / "beside" / "tokenizer").special["pad_token"] == "!"
  beside = vocabulary.find(beside=tmp_path / "beside")
  assert beside.special["pad_token"] == "<|endoftext|>"
  with pytest.raises(BadDataError, match=r"has \d+ tokens, not CLIP's 49408"):
    vocabulary.find(tiny_pipeline_folder)
