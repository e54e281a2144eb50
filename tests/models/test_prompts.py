"""Captions, token ids, embeddings, and words that are learned."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.configs import common
from udp_jax.data import sources
from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models import prompts, trainable
from udp_jax.models.base import embed_prompts
from udp_jax.models.tokenizer import Tokenizer, train_tokenizer
from udp_jax.studies import rows

TEXTS = ("a photograph of a cat", "a painting of a dog by the sea")


@pytest.fixture
def tokenizer() -> Tokenizer:
  return train_tokenizer(TEXTS, 520, length=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  for name in ("b", "a"):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{name}.png")
  return tmp_path


def _describe(folder: Path, texts: dict[str, str]) -> None:
  lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
  (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_captions_of_a_folder(folder: Path) -> None:
  pictures = sources.load(folder)
  with pytest.raises(ConfigError, match="no captions; give --prompt, or a metadata.jsonl"):
    prompts.captions_of(pictures, str(folder))
  assert prompts.captions_of(pictures, str(folder), "a cat") == ["a cat"] * 2
  _describe(folder, {"b.png": "second", "a.png": "first"})
  assert prompts.captions_of(pictures, f"folder:{folder}") == ["first", "second"]
  _describe(folder, {"b.png": "second"})
  with pytest.raises(BadDataError, match=r"no caption of a.png \(1 of 2 missing\)"):
    prompts.captions_of(pictures, str(folder))


def test_every_different_prompt_is_encoded_once(gaussian_model) -> None:
  batches = []

  def embed(params, ids):
    batches.append(ids.shape)
    return params * ids[:, :, None].astype(jnp.float32)

  model = gaussian_model._replace(embed=embed)
  ids = np.int32([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]])
  found = embed_prompts(model, jnp.float32(2.0), ids, batch_size=2)
  np.testing.assert_array_equal(found, 2.0 * ids[:, :, None])
  # Three different ones in batches of two: one shape, compiled once.
  assert batches == [(2, 2)]
  with pytest.raises(ConfigError, match="no text encoder"):
    embed_prompts(gaussian_model, None, ids)


def test_a_token_is_added_and_spelled(tokenizer: Tokenizer) -> None:
  size = len(tokenizer)
  ids, start = prompts.learn_token(tokenizer, "<mine>", "a", 2)
  assert ids == [size, size + 1]
  assert start == tokenizer(["a"])[0, 1]
  text = prompts.spell_out("a photograph of <mine>", "<mine>", 2)
  assert text == "a photograph of <mine> <mine>_1"
  assert [i for i in tokenizer([text])[0] if i >= size] == ids
  with pytest.raises(ConfigError, match="already in the tokenizer's vocabulary"):
    prompts.learn_token(tokenizer, "<mine>", "a")
  with pytest.raises(ConfigError, match="'zebra fish' is [0-9]+ tokens of this vocabulary"):
    prompts.learn_token(tokenizer, "<other>", "zebra fish")
  with pytest.raises(ConfigError, match="at least 1 vector"):
    prompts.learn_token(tokenizer, "<other>", "a", 0)


def test_templates_hold_the_token() -> None:
  for kind, texts in prompts.TEMPLATES.items():
    made = prompts.templates(kind, "<t>", 2)
    assert len(made) == len(set(made)) == len(texts)
    assert all("<t> <t>_1" in text for text in made)
  with pytest.raises(ConfigError, match="unknown kind of concept 'mood'; known: object, style"):
    prompts.templates("mood", "<t>")


def test_a_learned_token_joins_a_model(tokenizer: Tokenizer) -> None:
  size = len(tokenizer)
  table = jax.random.normal(jax.random.key(0), (size, 4))
  text = {"text_model": {"embeddings": {"token_embedding": {"embedding": table}}}}
  vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
  with pytest.raises(ConfigError, match="has vectors of 3 values, the model's have 4"):
    prompts.with_learned(tokenizer, {"text_encoder": text}, "<x>", vectors[:, :3])
  joined = prompts.with_learned(tokenizer, {"text_encoder": text}, "<x>", vectors)
  np.testing.assert_array_equal(trainable.token_table(joined), np.concatenate([table, vectors]))
  assert tokenizer(["<x>_1"])[0, 1] == size + 1


def test_prompts_of_a_config_become_token_ids(tiny_pipeline_folder, tiny_pipeline):
  folder = str(tiny_pipeline_folder)
  ids = prompts.token_ids(folder, "a photograph of a cat")
  assert ids == tuple(tiny_pipeline.tokenizer(["a photograph of a cat"])[0])
  assert len(prompts.token_ids("tiny_ldm", "")) == 77
  for place in ("", str(tiny_pipeline_folder / "unet")):
    with pytest.raises(ConfigError, match="'a style' needs a model with text"):
      prompts.token_ids(place, "a style")

  config = common.study("A test")
  config.model.path = folder
  config.protections.glaze = {"target": "style_transfer", "style_prompt": "a photograph of a cat"}
  config.protections.aspl = {"class_prompt": "the sea", "prior_weight": 1.0}
  assert rows.settings(config, "glaze").options["style_ids"] == ids
  settings = rows.settings(config, "aspl").options
  assert settings["class_ids"] == prompts.token_ids(folder, "the sea")
  assert "class_prompt" not in settings
