"""LoRA and learned-token files: written, read, in the forms that others write, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import learned_tokens, lora

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "unet.down_blocks.0.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def params() -> dict:
  attention = {
    "to_q": {"kernel": jnp.ones((6, 8))},
    "to_out_0": {"kernel": jnp.ones((8, 6)), "bias": jnp.zeros(6)},
  }
  down = {
    "attentions_0": {"transformer_blocks_0": {"attn1": attention}},
    "resnets_0": {"conv1": {"kernel": jnp.ones((3, 3, 4, 5))}},
  }
  layer = {"self_attn": {"q_proj": {"kernel": jnp.ones((7, 7))}}}
  text = {"text_model": {"encoder": {"layers_0": layer}}}
  return {"unet": {"down_blocks_0": down}, "text_encoder": text}


@pytest.fixture(scope="module")
def factors(params: dict) -> dict:
  """Trained ones: no zeros."""
  made = {
    "unet": lora.init_factors(
      jax.random.key(0), params["unet"], rank=2, targets=("to_q", "to_out_0", "conv1")
    ),
    "text_encoder": lora.init_factors(
      jax.random.key(1), params["text_encoder"], rank=2, targets=("q_proj",)
    ),
  }
  return jax.tree.map(lambda leaf: leaf + 0.3, made)


def test_names_and_shapes_are_pefts(factors: dict, tmp_path: Path) -> None:
  path = lora.save_lora(tmp_path / "new", factors)
  assert path == tmp_path / "new" / "pytorch_lora_weights.safetensors"
  shapes = {name: value.shape for name, value in safetensors.numpy.load_file(path).items()}
  assert shapes == {
    f"{Q}.lora_A.weight": (2, 6),
    f"{Q}.lora_B.weight": (8, 2),
    f"{OUT}.lora_A.weight": (2, 8),
    f"{OUT}.lora_B.weight": (6, 2),
    f"{CONV}.lora_A.weight": (2, 4, 3, 3),
    f"{CONV}.lora_B.weight": (5, 2, 1, 1),
    f"{TEXT}.lora_A.weight": (2, 7),
    f"{TEXT}.lora_B.weight": (7, 2),
  }


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_what_is_written_is_read(scale: float, factors: dict, params: dict, tmp_path: Path) -> None:
  lora.save_lora(tmp_path, factors, scale=scale)
  read = lora.load_lora(tmp_path, params)
  assert jax.tree.structure(read) == jax.tree.structure(factors)
  if scale == 1.0:
    jax.tree.map(np.testing.assert_array_equal, read, factors)
  # The scale is in the file: who reads it needs none.
  merged = lora.merge_factors(read, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    merged,
    lora.merge_factors(factors, params, scale=scale),
  )


def test_a_convolutions_update_is_two_convolutions(factors: dict, params: dict) -> None:
  x = jax.random.normal(jax.random.key(2), (1, 6, 6, 4))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  module = factors["unet"]["down_blocks_0"]["resnets_0"]["conv1"]
  kernel = params["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
  merged = lora.merge_factors(module, {"kernel": kernel}, scale=0.5)["kernel"]
  apart = conv(x, kernel) + 0.5 * conv(conv(x, module["lora_A"]), module["lora_B"][None, None])
  np.testing.assert_allclose(conv(x, merged), apart, rtol=1e-4, atol=1e-4)


def _pair(stem: str, sides: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, np.ndarray]:
  draw = np.random.default_rng(0).normal
  a, b = draw(size=(2, 6)).astype(np.float32), draw(size=(8, 2)).astype(np.float32)
  return {f"{stem}.{sides[0]}.weight": a, f"{stem}.{sides[1]}.weight": b}


def _update(path: Path, params: dict) -> np.ndarray:
  """What a file adds to the kernel of `Q`, transposed as in PyTorch."""
  merged = lora.merge_factors(lora.load_lora(path, params), params)
  attention = merged["unet"]["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn1"]
  return np.asarray(attention["to_q"]["kernel"] - 1.0).T


@pytest.mark.parametrize(
  ("sides", "alpha", "settings", "scale"),
  [
    (("lora_A", "lora_B"), None, None, 1.0),
    (("lora.down", "lora.up"), None, None, 1.0),
    (("lora_A", "lora_B"), 8.0, None, 4.0),
    (("lora_A", "lora_B"), None, {"unet.r": 2, "unet.lora_alpha": 1}, 0.5),
    (("lora_A", "lora_B"), None, {"text_encoder.lora_alpha": 1}, 1.0),
  ],
)
def test_files_of_others(sides, alpha, settings, scale: float, params: dict, tmp_path: Path):
  tensors = _pair(Q, sides)
  b_a = tensors[f"{Q}.{sides[1]}.weight"] @ tensors[f"{Q}.{sides[0]}.weight"]
  if alpha:
    tensors[f"{Q}.alpha"] = np.array(alpha, np.float32)
  metadata = {"lora_adapter_metadata": json.dumps(settings)} if settings else None
  path = tmp_path / "other.safetensors"
  safetensors.numpy.save_file(tensors, path, metadata=metadata)
  np.testing.assert_allclose(_update(path, params), scale * b_a, rtol=1e-5, atol=1e-6)


def test_unusable_files(params: dict, tmp_path: Path) -> None:
  path = tmp_path / "lora.safetensors"

  def error(tensors: dict[str, np.ndarray]) -> str:
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(BadDataError) as raised:
      lora.load_lora(path, params)
    return str(raised.value)

  assert "up_blocks.9.attn.to_q" in error(_pair("unet.up_blocks.9.attn.to_q"))
  assert f"{Q} has no lora_B.weight" in error({k: v for k, v in _pair(Q).items() if "_A" in k})
  wrong = {name: value[..., :-1].copy() for name, value in _pair(Q).items()}
  assert "do not fit a kernel (6, 8)" in error(wrong)
  assert "kohya's format" in error({"lora_unet_down.lora_down.weight": np.zeros((2, 2))})
  path.write_bytes(b"not safetensors")
  with pytest.raises(BadDataError, match="not a readable safetensors file"):
    lora.load_lora(path, params)
  with pytest.raises(MissingDataError, match="pytorch_lora_weights.safetensors"):
    lora.load_lora(tmp_path / "nowhere" / lora.FILE_NAME, params)
  with pytest.raises(ConfigError, match="not of vae"):
    lora.save_lora(tmp_path, {"vae": {}})


def test_learned_tokens(tmp_path: Path) -> None:
  for count in (1, 3):
    vectors = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    path = learned_tokens.save_learned_token(tmp_path, "<mine>", vectors)
    assert path.name == "learned_embeds.safetensors"
    (stored,) = safetensors.numpy.load_file(path).values()
    assert stored.shape == ((5,) if count == 1 else (3, 5))
    token, read = learned_tokens.load_learned_token(tmp_path)
    assert token == "<mine>"
    np.testing.assert_array_equal(read, vectors)
  assert learned_tokens.spelled("<a>", 3) == ["<a>", "<a>_1", "<a>_2"]
  safetensors.numpy.save_file({"<a>": np.zeros(2), "<b>": np.zeros(2)}, path)
  with pytest.raises(BadDataError, match="holds 2 tensors"):
    learned_tokens.load_learned_token(path)
  safetensors.numpy.save_file({"<a>": np.zeros((1, 2, 3))}, path)
  with pytest.raises(BadDataError, match=r"\(1, 2, 3\)"):
    learned_tokens.load_learned_token(path)
