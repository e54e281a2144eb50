"""Textual inversion: a longer table of tokens, and nothing else."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.threats.parts import WIDTH, WORDS, changed, params, text_model
from udp_jax import threats
from udp_jax.errors import ConfigError
from udp_jax.models.learned_tokens import load_learned_token

OPTIONS = {"train_steps": 1, "sample_steps": 2, "token_ids": (WORDS, WORDS + 1)}


def _table(tree) -> np.ndarray:
  return tree["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]


def test_vectors_start_from_words_and_go_behind_the_table(gaussian_model) -> None:
  base = params()
  threat = threats.build(
    "textual_inversion", text_model(gaussian_model), OPTIONS | {"init_from": (3, 5)}
  )
  assert changed(threat, base) == {"text_encoder/text_model/embeddings/token_embedding/embedding"}
  theta = threat.init(jax.random.key(0), base).params
  np.testing.assert_array_equal(theta, _table(base)[np.array([3, 5])])
  merged = _table(threat.trainable.merge(theta + 1.0, base))
  np.testing.assert_array_equal(merged[:WORDS], _table(base))
  np.testing.assert_array_equal(merged[WORDS:], theta + 1.0)
  assert threat.needs_token_ids


def test_the_file_holds_the_word(gaussian_model, tmp_path) -> None:
  given = OPTIONS | {"init_from": 3, "token": "<mine>"}
  threat = threats.build("textual_inversion", text_model(gaussian_model), given)
  vectors = np.arange(2.0 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
  token, read = load_learned_token(threat.save(tmp_path, vectors))
  assert token == "<mine>"
  np.testing.assert_array_equal(read, vectors)


def test_tokens_that_do_not_fit(gaussian_model) -> None:
  model = text_model(gaussian_model)
  with pytest.raises(ConfigError, match="each needs one row to start from"):
    threats.build("textual_inversion", model, OPTIONS | {"init_from": (1, 2, 3)})
  threat = threats.build("textual_inversion", model, OPTIONS | {"init_from": WORDS})
  with pytest.raises(ConfigError, match=f"token {WORDS} has no embedding: the table has {WORDS}"):
    threat.init(jax.random.key(0), params())
