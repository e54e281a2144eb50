"""Checkpoints of one file against PyTorch diffusers' own conversion, live.

Random models of Stable Diffusion 1.x, 2.x and XL in their first authors' names go through
diffusers' functions and through our table; tensors must be equal, name by name. At full size the
names and shapes must be those of diffusers' networks (on the meta device, without weights).
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs

from tests.models import original_names
from tests.models.test_single_file import opened, random, shapes_of
from udp_jax.models import pipeline, single_file, weights
from udp_jax.models.tokenizer import BOS, EOS, Tokenizer, alphabet

KINDS = ("sd1", "sd2", "sdxl")


def their_parts(tensors: dict[str, np.ndarray], made: single_file.Parts):
  """All parts as diffusers' functions convert them."""
  state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
  found = {
    "unet": theirs.convert_ldm_unet_checkpoint(dict(state), made.configs["unet"]),
    "vae": theirs.convert_ldm_vae_checkpoint(dict(state), made.configs["vae"]),
  }

  def openclip(part: str, prefix: str):
    width = made.configs[part]["hidden_size"]
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return theirs.convert_open_clip_checkpoint(model, dict(state), prefix=prefix)

  if made.family == single_file.SD2:
    found["text_encoder"] = openclip("text_encoder", "cond_stage_model.model.")
  else:
    found["text_encoder"] = theirs.convert_ldm_clip_checkpoint(dict(state))
  if made.family == single_file.SDXL:
    found["text_encoder_2"] = openclip("text_encoder_2", "conditioner.embedders.1.model.")
  return found


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor(kind: str, channels: int, tmp_path) -> None:
  tensors = random(original_names.checkpoint(kind, in_channels=channels))
  file = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(tensors, file)
  made = single_file.open_file(file)
  wanted = their_parts(tensors, made)
  assert set(wanted) == set(made.tensors)
  for part, expected in wanted.items():
    found = made.tensors[part]
    # 2.x has a projection that diffusers ignores too, in a file of 24 layers.
    assert set(found) == set(expected) - {"text_projection.weight"} | (
      {"text_projection.weight"} if part == "text_encoder_2" else set()
    )
    for name in found:
      np.testing.assert_array_equal(found[name], expected[name].numpy(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_names_and_shapes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
  made = opened(monkeypatch, original_names.checkpoint(kind, small=False))
  with torch.device("meta"):
    networks = {
      "unet": UNet2DConditionModel.from_config(made.configs["unet"]),
      "vae": AutoencoderKL.from_config(made.configs["vae"]),
    }
  for part, network in networks.items():
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes_of(made.tensors[part]) == wanted
  import transformers

  for part in ("text_encoder", "text_encoder_2"):
    if part not in made.configs:
      continue
    config = transformers.CLIPTextConfig(**made.configs[part])
    name = made.configs[part]["architectures"][0]
    with torch.device("meta"):
      network = getattr(transformers, name)(config)
    wanted = {
      n.removeprefix("text_model."): tuple(v.shape) for n, v in network.state_dict().items()
    }
    found = {n.removeprefix("text_model."): s for n, s in shapes_of(made.tensors[part]).items()}
    assert found == wanted


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_from_single_file(kind: str, tmp_path) -> None:
  """Their whole `from_single_file` with our configs; every parameter, and one prediction."""
  tensors = random(original_names.checkpoint(kind), np.float16)
  file = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(tensors, file)
  letters = alphabet()
  merges = [(a, b) for a in letters[:256] for b in letters[:256]][: 49408 - 514]
  tokens = [*letters, *(a + b for a, b in merges), BOS, EOS]
  Tokenizer({token: i for i, token in enumerate(tokens)}, merges).save(tmp_path / "tokenizer")
  ours = pipeline.load_pipeline(file)
  pipeline.save_pipeline_folder(tmp_path / "folder", ours)
  config = tmp_path / "config"
  for place in sorted((tmp_path / "folder").rglob("*")):
    if place.is_file() and place.suffix != ".safetensors":
      target = config / place.relative_to(tmp_path / "folder")
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(place.read_bytes())
  index = json.loads((config / "model_index.json").read_text())
  assert index["_class_name"] == "StableDiffusionPipeline"
  pipe = StableDiffusionPipeline.from_single_file(
    str(file), config=str(config), local_files_only=True, safety_checker=None
  )
  for part in ("unet", "vae", "text_encoder"):
    expected = {
      name.removeprefix("text_model."): value.float().numpy()
      for name, value in getattr(pipe, part).state_dict().items()
    }
    found = {
      name.removeprefix("text_model."): value
      for name, value in weights.to_torch_names(ours.params[part]).items()
    }
    assert set(found) == set(expected)
    for name, value in found.items():
      np.testing.assert_array_equal(value, expected[name], err_msg=f"{part} {name}")
  ids = ours.tokenizer(["a dog on !grass"])
  texts = {"padding": "max_length", "max_length": 77, "truncation": True}
  np.testing.assert_array_equal(pipe.tokenizer(["a dog on !grass"], **texts).input_ids, ids)
  cond = ours.model.embed(ours.params, ids)
  x_t = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
  found = jax.jit(ours.model.apply)(ours.params, x_t, np.array([400]), cond)
  with torch.no_grad():
    hidden = pipe.text_encoder.float()(torch.from_numpy(ids).long())[0]
    expected = pipe.unet.float()(
      torch.from_numpy(x_t).permute(0, 3, 1, 2), torch.tensor([400]), hidden
    ).sample.permute(0, 2, 3, 1)
  np.testing.assert_allclose(cond, hidden.numpy(), atol=1e-5)
  np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
