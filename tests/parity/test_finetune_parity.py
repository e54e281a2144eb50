"""Our LoRA and textual-inversion files in PyTorch diffusers: they change its output as ours."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from udp_jax.models import learned_tokens, lora, lora_files, pipeline, prompts, trainable

PROMPTS = ["a photograph of a cat", "the sea at night"]
# Relative to the largest value, as everywhere in these comparisons.
TOLERANCE = 1e-4
# Full update of a kernel relative to the kernel: large, so that it shows.
STRENGTH = 0.3
needs_peft = pytest.mark.skipif(
  importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install peft"
)


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
  pipeline.save_pipeline_folder(tmp_path / "model", tiny_pipeline)
  return tmp_path / "model"


@pytest.fixture
def ours(folder):
  return pipeline.load_pipeline(folder)


@pytest.fixture
def theirs(folder):
  pipe = StableDiffusionPipeline.from_pretrained(folder)
  pipe.set_progress_bar_config(disable=True)
  return pipe


def _inputs(seed=3):
  draw = np.random.default_rng(seed).normal
  return draw(size=(2, 8, 8, 4)).astype(np.float32), draw(size=(2, 77, 16)).astype(np.float32)


def _our_unet(model, params):
  x_t, cond = _inputs()
  return np.asarray(jax.jit(model.apply)(params, x_t, jnp.array([3, 700]), jnp.asarray(cond)))


def _their_unet(pipe):
  x_t, cond = _inputs()
  with torch.no_grad():
    sample = torch.from_numpy(x_t).permute(0, 3, 1, 2)
    out = pipe.unet(sample, torch.tensor([3, 700]), torch.from_numpy(cond)).sample
  return out.permute(0, 2, 3, 1).numpy()


def _our_text(model, params, ids):
  return np.asarray(jax.jit(model.embed)(params, ids))


def _their_text(pipe, ids):
  with torch.no_grad():
    return pipe.text_encoder(torch.from_numpy(np.int64(ids)))[0].numpy()


def _compare(label, ours, theirs, without):
  """Close to each other, and far from what the same network gives without the file."""
  error = np.abs(ours - theirs).max() / np.abs(theirs).max()
  change = np.abs(theirs - without).max() / np.abs(theirs).max()
  print(f"{label}: relative difference {error:.1e}, change by the file {change:.1e}")
  assert change > 1e-2
  assert error < TOLERANCE


def _trained(kind, params, seed=0):
  """Factors that are not at their start: kernels move by `STRENGTH` of their size."""
  theta = kind.init(jax.random.key(seed), params)
  leaves, structure = jax.tree.flatten(theta)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  drawn = [STRENGTH * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
  return jax.tree.unflatten(structure, drawn)


@needs_peft
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_lora_of_unet_and_text_encoder(ours, theirs, tmp_path, scale):
  kind = trainable.lora(3, scale, text_encoder_targets=lora.TEXT_ENCODER_TARGETS)
  theta = _trained(kind, ours.params)
  lora_files.save_lora(tmp_path / "lora", theta, scale=scale)
  ids = ours.tokenizer(PROMPTS)
  before = _their_unet(theirs), _their_text(theirs, ids)
  theirs.load_lora_weights(tmp_path / "lora")
  merged = kind.merge(theta, ours.params)
  _compare("unet", _our_unet(ours.model, merged), _their_unet(theirs), before[0])
  text = _our_text(ours.model, merged, ids)
  _compare("text encoder", text, _their_text(theirs, ids), before[1])


@needs_peft
def test_lora_of_convolutions(ours, theirs, tmp_path):
  kind = trainable.lora(2, 1.0, ("conv1", "proj_in", "to_q"))
  theta = _trained(kind, ours.params, seed=5)
  lora_files.save_lora(tmp_path, theta)
  before = _their_unet(theirs)
  theirs.load_lora_weights(tmp_path)
  merged = kind.merge(theta, ours.params)
  _compare("convolutions", _our_unet(ours.model, merged), _their_unet(theirs), before)


@needs_peft
def test_their_lora_file_in_ours(ours, theirs, tmp_path):
  """Written by diffusers, with a lora_alpha that is not the rank, in the file's metadata."""
  from diffusers.utils import convert_state_dict_to_diffusers
  from peft import LoraConfig
  from peft.utils import get_peft_model_state_dict

  before = _their_unet(theirs)
  torch.manual_seed(0)
  settings = {"r": 2, "lora_alpha": 6, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
  theirs.unet.add_adapter(LoraConfig(init_lora_weights=False, **settings))
  layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(theirs.unet))
  StableDiffusionPipeline.save_lora_weights(
    tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
  )
  merged = lora.merge_factors(lora_files.load_lora(tmp_path, ours.params), ours.params)
  _compare("theirs", _our_unet(ours.model, merged), _their_unet(theirs), before)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_textual_inversion(ours, theirs, tmp_path, num_vectors):
  vectors = np.random.default_rng(2).normal(size=(num_vectors, 16)).astype(np.float32)
  learned_tokens.save_learned_token(tmp_path, "<mine>", vectors)
  # What the prompt meant before: unknown letters.
  text = "a photograph of <mine>"
  without = _our_text(ours.model, ours.params, ours.tokenizer([text]))
  theirs.load_textual_inversion(tmp_path)
  token, read = learned_tokens.load_learned_token(tmp_path)
  params = prompts.with_learned(ours.tokenizer, ours.params, token, read)
  ids = ours.tokenizer([prompts.spell_out(text, "<mine>", num_vectors)])
  with torch.no_grad():
    expected = theirs.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0].numpy()
  _compare("text encoder", _our_text(ours.model, params, ids), expected, without)
