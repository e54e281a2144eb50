"""LoRA: projections of attention, and what a file of them holds."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.threats.parts import WIDTH, changed, params, text_model
from udp_jax import threats
from udp_jax.errors import ConfigError
from udp_jax.models import lora_files

OPTIONS = {"train_steps": 1, "sample_steps": 2, "rank": 2}


@pytest.mark.parametrize("text", [False, True])
def test_projections_are_trained_and_nothing_else(text: bool, gaussian_model) -> None:
  model = text_model(gaussian_model)
  threat = threats.build("lora", model, OPTIONS | {"train_text_encoder": text})
  paths = changed(threat, params())
  names = {path.split("/")[-2] for path in paths}
  ours = {"to_q", "to_k", "to_v", "to_out_0"}
  assert names == (ours | {"q_proj", "k_proj", "v_proj", "out_proj"} if text else ours)
  assert threat.needs_token_ids == text


def test_an_update_starts_from_nothing_and_is_a_product(gaussian_model, tmp_path) -> None:
  base, scale = params(), 0.5
  threat = threats.build("lora", text_model(gaussian_model), OPTIONS | {"scale": scale})
  theta = threat.init(jax.random.key(0), base).params
  merged = threat.trainable.merge(theta, base)
  jax.tree.map(np.testing.assert_array_equal, merged, base)
  moved = jax.tree.map(lambda leaf: leaf + 0.3, theta)
  factors = moved["unet"]["block"]["attn2"]["to_q"]
  a, b = (np.asarray(factors[name], np.float64) for name in ("lora_A", "lora_B"))
  assert {a.shape, b.shape} == {(WIDTH, 2), (2, WIDTH)}
  plain = np.asarray(base["unet"]["block"]["attn2"]["to_q"]["kernel"])
  found = threat.trainable.merge(moved, base)["unet"]["block"]["attn2"]["to_q"]["kernel"]
  np.testing.assert_allclose(found, plain + scale * a @ b, rtol=1e-5, atol=1e-6)
  # The file has the scale in it: whoever reads it applies the same update.
  path = threat.save(tmp_path, moved)
  read = lora_files.load_lora(path, base)["unet"]["block"]["attn2"]["to_q"]
  product = np.asarray(read["lora_A"]) @ np.asarray(read["lora_B"])
  np.testing.assert_allclose(product, scale * a @ b, rtol=1e-5, atol=1e-6)


def test_a_rank_is_at_least_one(gaussian_model) -> None:
  with pytest.raises(ConfigError, match="rank"):
    threats.build("lora", text_model(gaussian_model), OPTIONS | {"rank": 0})
