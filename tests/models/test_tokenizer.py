"""The tokenizer against transformers', with a small vocabulary that is trained here."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models.tokenizer import EOS, load_tokenizer, train_tokenizer

WORDS = (
  "a photo painting of the sks dog's cat sitting standing in an old garden under trees by night,"
  " oil on canvas; portrait of woman with hat, trending on artstation, 8k, highly detailed"
  " watercolour river & mountains (sunset) it's they're I've we'll he'd I'm don't 1920 café naïve"
).split()
PROMPTS = [
  "",
  " ",
  "A Photo of a DOG",
  "  spaces\tand\nlines \r\n between  ",
  "it's they're I've we'll he'd I'm, don't, IT'S, ''quoted'' '''s",
  "3.14159, 1920x1080 (8k) 100% !!! ??? ... --ar 16:9 #tag @name a_b c-d e/f",
  "hello! wow!! ! end!",
  "café cafe\u0301 NAÏVE Straße İstanbul ﬁne Ω π ß ẞ",
  "emoji 🎨🖌️ 👩 and flags 🇫🇷, arrows → ⇒, maths ≤ ∞ ½ ² №",
  "кошка сидит на дереве, τέχνη, תמונה, صورة, चित्र",
  "non\u00a0breaking\u2003em\u3000wide space",
  "<|startoftext|> inside <|endoftext|> text",
  "x" * 300,
  "many words " * 60,
  "<new> <New> a<new>b <my-style>, newer",
]
# Where the tokenizer in Python differs from the library's, and from transformers 5.
LIBRARY_ONLY = [
  "👩‍🎨",
  "梵高 的画, 富士山",
  "日本の絵画",
  "bell \x07 and zero\x00 width\u200b joiner",
]


def random_prompts(count: int) -> list[str]:
  generator = random.Random(0)
  letters = "abc XYZ 'sdtm!?.,<|>_-0123456789éßÀñ—“”…™\t\n"
  made = []
  for _ in range(count):
    words = [generator.choice(WORDS) for _ in range(generator.randrange(1, 12))]
    noise = "".join(generator.choice(letters) for _ in range(generator.randrange(30)))
    made.append(generator.choice([str.title, str.upper, str])(" ".join(words)) + noise)
  return made


def test_trained_vocabulary_is_laid_out_as_clips(trained):
  tokens = list(trained.vocab)
  assert len(trained) == len(tokens) <= 700
  assert tokens[256] == tokens[0] + "</w>" == "!</w>"
  assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
  assert len(tokens) == 514 + len(trained.merges)
  # Words that are frequent are one token: start, word, end, padding.
  row = trained(["painting"])[0]
  assert row[0] == len(tokens) - 2 and set(row[2:]) == {len(tokens) - 1}


@pytest.fixture(scope="module")
def trained():
  return train_tokenizer([" ".join(WORDS)] * 3 + random_prompts(50), 700)


@pytest.mark.parametrize("pad", ["!", EOS])
def test_same_ids_as_transformers(trained, pad, tmp_path):
  """Folders of 1.x (padded with the end mark) and 2.x (padded with id 0), older files' layout."""
  import transformers  # Takes seconds, for which collecting tests need not wait.

  trained.save(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps({"model_max_length": 77, "pad_token": EOS, "do_lower_case": True})
  )
  special = {"bos_token": {"content": "<|startoftext|>", "normalized": True}, "pad_token": pad}
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
  tokenizer = load_tokenizer(tmp_path)
  prompts = PROMPTS + random_prompts(300)
  assert tokenizer.special["pad_token"] == pad
  assert tokenizer([""])[0, 2] == (0 if pad == "!" else len(tokenizer) - 1)

  options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "np"}
  for kind, more in (
    (transformers.CLIPTokenizer, []),
    (transformers.CLIPTokenizerFast, LIBRARY_ONLY),
  ):
    theirs = kind.from_pretrained(tmp_path)
    expected = theirs(prompts + more, **options).input_ids
    actual = tokenizer(prompts + more)
    assert actual.dtype == np.int32 and actual.shape == (len(expected), 77)
    for prompt, row, wanted in zip(prompts + more, actual, expected):
      np.testing.assert_array_equal(row, wanted, err_msg=f"{kind.__name__} {prompt!r}")


def test_added_tokens_and_files(trained, tmp_path):
  import transformers  # Takes seconds, for which collecting tests need not wait.

  trained.save(tmp_path / "plain")
  tokenizer = load_tokenizer(tmp_path / "plain")
  assert tokenizer.vocab == trained.vocab and tokenizer.merges == trained.merges
  size = len(tokenizer)
  assert [tokenizer.add_token("<new>"), tokenizer.add_token("<my-style>")] == [size, size + 1]
  assert len(tokenizer) == size + 2 and tokenizer.token_id("<my-style>") == size + 1
  prompts = [*PROMPTS, "the <my-style> of<new>"]
  expected = tokenizer(prompts)
  assert list(expected[-1][2:5]) == [size + 1, tokenizer.token_id("of</w>"), size]
  assert not (trained(prompts) >= size).any()  # The other tokenizer was left as it was.

  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "plain")
  theirs.add_tokens(["<new>", "<my-style>"])
  tokenizer.save(tmp_path / "ours")
  theirs.save_pretrained(tmp_path / "theirs")
  fast = transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "ours")
  fast.save_pretrained(tmp_path / "json")
  # What transformers 5 writes.
  for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
    (tmp_path / "json" / name).unlink()
  for name in ("ours", "theirs", "json"):
    again = load_tokenizer(tmp_path / name)
    assert again.added == tokenizer.added
    np.testing.assert_array_equal(again(prompts), expected, err_msg=name)
  read = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
  options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
  np.testing.assert_array_equal(read(prompts, **options).input_ids, expected)


def test_long_prompts_are_cut_with_a_warning(trained, caplog):
  row = trained(["a dog " * 100, "a dog"])[0]
  assert row[0] == trained.token_id("<|startoftext|>") and row[-1] == trained.token_id(EOS)
  assert list(row[1:-1]) == [trained.token_id("a</w>"), trained.token_id("dog</w>")] * 37 + [row[1]]
  assert "1 of 2 prompts were cut to 77 tokens" in caplog.text


def test_errors_are_named(trained, tmp_path):
  with pytest.raises(MissingDataError, match="vocab.json with merges.txt"):
    load_tokenizer(tmp_path)
  trained.save(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  for token in ("dog</w>", "!", EOS, " "):
    with pytest.raises(ConfigError, match="already"):
      tokenizer.add_token(token)
  with pytest.raises(ConfigError, match="<none>"):
    tokenizer.token_id("<none>")
  with pytest.raises(ConfigError, match="513"):
    train_tokenizer(["a"], 513)
  with pytest.raises(TypeError):
    tokenizer("one prompt")

  (tmp_path / "merges.txt").write_text("#version: 0.2\nqq zz\n")
  with pytest.raises(BadDataError, match="merges do not fit"):
    load_tokenizer(tmp_path)
  (tmp_path / "merges.txt").write_text("#version: 0.2\none two three\n")
  with pytest.raises(BadDataError, match="damaged"):
    load_tokenizer(tmp_path)
  trained.save(tmp_path)
  (tmp_path / "added_tokens.json").write_text('{"<x>": 9999}')
  with pytest.raises(BadDataError, match="9999"):
    load_tokenizer(tmp_path)
  trained.save(tmp_path / "no_mark")
  vocab = {token: i for token, i in trained.vocab.items() if token != EOS}
  (tmp_path / "no_mark" / "vocab.json").write_text(json.dumps(vocab))
  (tmp_path / "no_mark" / "tokenizer_config.json").unlink()
  with pytest.raises(BadDataError, match="endoftext"):
    load_tokenizer(tmp_path / "no_mark")
