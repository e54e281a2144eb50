"""LoRA files: written, read, in the forms that others write, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import lora, lora_files

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "unet.down_blocks.0.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def test_names_and_shapes_are_pefts(factors: dict, tmp_path: Path) -> None:
  path = lora_files.save_lora(tmp_path / "new", factors)
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
def test_what_is_written_is_read(
  scale: float, factors: dict, plain_params: dict, tmp_path: Path
) -> None:
  lora_files.save_lora(tmp_path, factors, scale=scale)
  read = lora_files.load_lora(tmp_path, plain_params)
  assert jax.tree.structure(read) == jax.tree.structure(factors)
  if scale == 1.0:
    jax.tree.map(np.testing.assert_array_equal, read, factors)
  # The scale is in the file: who reads it needs none.
  merged = lora.merge_factors(read, plain_params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    merged,
    lora.merge_factors(factors, plain_params, scale=scale),
  )


def _pair(stem: str, sides: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, np.ndarray]:
  draw = np.random.default_rng(0).normal
  a, b = draw(size=(2, 6)).astype(np.float32), draw(size=(8, 2)).astype(np.float32)
  return {f"{stem}.{sides[0]}.weight": a, f"{stem}.{sides[1]}.weight": b}


def _update(path: Path, plain_params: dict) -> np.ndarray:
  """What a file adds to the kernel of `Q`, transposed as in PyTorch."""
  merged = lora.merge_factors(lora_files.load_lora(path, plain_params), plain_params)
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
def test_files_of_others(sides, alpha, settings, scale: float, plain_params: dict, tmp_path: Path):
  tensors = _pair(Q, sides)
  b_a = tensors[f"{Q}.{sides[1]}.weight"] @ tensors[f"{Q}.{sides[0]}.weight"]
  if alpha:
    tensors[f"{Q}.alpha"] = np.array(alpha, np.float32)
  metadata = {"lora_adapter_metadata": json.dumps(settings)} if settings else None
  path = tmp_path / "other.safetensors"
  safetensors.numpy.save_file(tensors, path, metadata=metadata)
  np.testing.assert_allclose(_update(path, plain_params), scale * b_a, rtol=1e-5, atol=1e-6)


def test_unusable_files(plain_params: dict, tmp_path: Path) -> None:
  path = tmp_path / "lora.safetensors"

  def error(tensors: dict[str, np.ndarray]) -> str:
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(BadDataError) as raised:
      lora_files.load_lora(path, plain_params)
    return str(raised.value)

  assert "up_blocks.9.attn.to_q" in error(_pair("unet.up_blocks.9.attn.to_q"))
  assert f"{Q} has no lora_B.weight" in error({k: v for k, v in _pair(Q).items() if "_A" in k})
  wrong = {name: value[..., :-1].copy() for name, value in _pair(Q).items()}
  assert "do not fit a kernel (6, 8)" in error(wrong)
  assert "kohya's format" in error({"lora_unet_down.lora_down.weight": np.zeros((2, 2))})
  path.write_bytes(b"not safetensors")
  with pytest.raises(BadDataError, match="not a readable safetensors file"):
    lora_files.load_lora(path, plain_params)
  with pytest.raises(MissingDataError, match="pytorch_lora_weights.safetensors"):
    lora_files.load_lora(tmp_path / "nowhere" / lora_files.FILE_NAME, plain_params)
  with pytest.raises(ConfigError, match="not of vae"):
    lora_files.save_lora(tmp_path, {"vae": {}})
