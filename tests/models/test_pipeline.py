"""Stable Diffusion folders: written, read back, and refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError, OutputError
from udp_jax.models import pipeline

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_pipeline_folder, tmp_path) -> Path:
  """A copy of the tiny folder, to damage."""
  return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))


def edit(path: Path, change) -> None:
  """Rewrites a safetensors file with `change(tensors)`."""
  tensors = change(safetensors.numpy.load_file(path))
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def same(params, expected) -> None:
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_round_trip(tiny_pipeline, tiny_pipeline_folder):
  loaded = pipeline.load_pipeline(tiny_pipeline_folder)
  same(loaded.params, tiny_pipeline.params)
  assert loaded.configs == tiny_pipeline.configs
  assert loaded.scheduler == tiny_pipeline.scheduler
  assert loaded.model.schedule.prediction_type == "epsilon"
  np.testing.assert_array_equal(
    loaded.model.schedule.alphas_cumprod, tiny_pipeline.model.schedule.alphas_cumprod
  )
  prompts = ["A CAT, by the sea", ""]
  np.testing.assert_array_equal(loaded.tokenizer(prompts), tiny_pipeline.tokenizer(prompts))
  assert loaded.model.image_shape == (16, 16, 3)


def test_the_index_names_every_part(tiny_pipeline, tiny_pipeline_folder, tmp_path):
  index = json.loads((tiny_pipeline_folder / "model_index.json").read_text())
  assert index["_class_name"] == "StableDiffusionPipeline"
  assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
  assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
  assert index["scheduler"] == ["diffusers", "PNDMScheduler"]
  config = json.loads((tiny_pipeline_folder / "text_encoder" / "config.json").read_text())
  assert config["architectures"] == ["CLIPTextModel"] and "_class_name" not in config
  # Without a text encoder there is none in the index, and none to load.
  configs = {part: tiny_pipeline.configs[part] for part in ("unet", "vae")}
  bare = tiny_pipeline._replace(configs=configs, tokenizer=None, scheduler={"beta_end": 0.01})
  pipeline.save_pipeline_folder(tmp_path / "bare", bare)
  index = json.loads((tmp_path / "bare" / "model_index.json").read_text())
  assert index["text_encoder"] == index["tokenizer"] == [None, None]
  loaded = pipeline.load_pipeline(tmp_path / "bare")
  assert loaded.tokenizer is None and loaded.model.embed is None
  assert loaded.scheduler == {"_class_name": "DDIMScheduler", "beta_end": 0.01}
  same(loaded.params, {part: tiny_pipeline.params[part] for part in configs})


def test_a_save_that_fails_is_not_taken_for_a_model(tiny_pipeline, folder):
  shutil.rmtree(folder / "tokenizer")
  (folder / "tokenizer").touch()
  with pytest.raises(OutputError, match="tokenizer"):
    pipeline.save_pipeline_folder(folder, tiny_pipeline)
  assert not (folder / "model_index.json").exists()


def test_other_parameters_can_be_saved(tiny_pipeline, folder):
  changed = jax.tree.map(lambda leaf: 2 * leaf, tiny_pipeline.params)
  pipeline.save_pipeline_folder(folder, tiny_pipeline, changed)
  same(pipeline.load_pipeline(folder).params, changed)


def test_half_precision_variants_become_float32(tiny_pipeline, folder):
  for part in ("unet", "vae", "text_encoder"):
    path = next((folder / part).glob("*.safetensors"))
    edit(path, lambda tensors: {k: v.astype(np.float16) for k, v in tensors.items()})
    path.rename(path.with_suffix(".fp16.safetensors"))
  expected = jax.tree.map(lambda leaf: leaf.astype(np.float16), tiny_pipeline.params)
  loaded = pipeline.load_pipeline(folder, variant="fp16")
  same(loaded.params, expected)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.params))
  narrow = pipeline.load_pipeline(folder, {"frozen_dtype": "bfloat16"}).params
  assert narrow["vae"]["encoder"]["conv_in"]["kernel"].dtype == jnp.bfloat16
  assert narrow["text_encoder"]["text_model"]["final_layer_norm"]["scale"].dtype == jnp.float32
  same(narrow["unet"], expected["unet"])


def test_names_and_shapes_of_older_autoencoders(tiny_pipeline, folder):
  older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

  def age(tensors):
    aged = {}
    for name, value in tensors.items():
      if "attentions" in name and value.ndim == 2:
        value = value[:, :, None, None]  # Once a 1x1 convolution.
      for new, old in older.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
      aged[name] = value
    assert sum("proj_attn" in name for name in aged) == 4
    return aged

  edit(folder / VAE_FILE, age)
  same(pipeline.load_pipeline(folder).params, tiny_pipeline.params)


def test_names_of_newer_and_older_text_encoders(tiny_pipeline, folder):
  def modern(tensors):
    return {name.removeprefix("text_model."): value for name, value in tensors.items()}

  edit(folder / TEXT_FILE, modern)
  same(pipeline.load_pipeline(folder).params, tiny_pipeline.params)
  buffer = {"embeddings.position_ids": np.arange(77)[None]}
  edit(folder / TEXT_FILE, lambda tensors: tensors | buffer)
  same(pipeline.load_pipeline(folder).params, tiny_pipeline.params)


def test_tensors_that_do_not_fit_are_named(folder):
  name = "encoder.mid_block.attentions.0.to_q.weight"

  def damage(tensors):
    del tensors["decoder.conv_out.bias"]
    return tensors | {name: np.zeros((3, 5), np.float32), "extra.weight": np.zeros(1)}

  edit(folder / VAE_FILE, damage)
  with pytest.raises(BadDataError) as error:
    pipeline.load_pipeline(folder)
  for part in (str(folder / "vae"), "decoder.conv_out.bias", f"{name} (as", "extra.weight"):
    assert part in str(error.value)


def test_pickles_are_not_opened(folder):
  path = folder / VAE_FILE
  path.rename(path.with_suffix(".bin"))
  with pytest.raises(MissingDataError, match=r"a pickle.*Convert it.*save_pretrained"):
    pipeline.load_pipeline(folder)


@pytest.mark.parametrize(
  "lost, message",
  [
    ("unet", "no unet/config.json"),
    ("vae/config.json", "no vae/config.json"),
    ("scheduler/scheduler_config.json", "no scheduler/scheduler_config.json"),
    ("tokenizer/vocab.json", "no tokenizer in"),
    ("", "no folder .*hf download"),
  ],
)
def test_missing_parts_are_named(folder, lost, message):
  path = folder / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(MissingDataError, match=message):
    pipeline.load_pipeline(folder)


@pytest.mark.parametrize(
  "file, change, error, message",
  [
    ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, ConfigError, "XLPipeline"),
    ("model_index.json", {"text_encoder_2": ["a", "B"]}, ConfigError, "text_encoder_2"),
    (
      "unet/config.json",
      {"_class_name": "UNet2DModel"},
      BadDataError,
      "describes a UNet2DModel, and model_index.json promises a StableDiffusionPipeline",
    ),
    ("unet/config.json", {"sample_size": [8]}, ConfigError, "sample_size"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, BadDataError, "beta_schedule 'x'"),
    (
      "scheduler/scheduler_config.json",
      {"rescale_betas_zero_snr": True},
      BadDataError,
      "ends in pure noise needs v_prediction",
    ),
  ],
)
def test_what_is_not_supported_is_named(folder, file, change, error, message):
  path = folder / file
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(error, match=message):
    pipeline.load_pipeline(folder)


def test_folders_are_told_apart(tiny_pipeline_folder, tmp_path):
  assert pipeline.is_pipeline(tiny_pipeline_folder)
  assert pipeline.resolve("tiny_ldm") == Path(pipeline.__file__).parent / "tiny_ldm"
  assert pipeline.resolve(tmp_path / "tiny_ldm") == tmp_path / "tiny_ldm"


def test_xl_round_trip(tiny_sdxl, tmp_path):
  pipeline.save_pipeline_folder(tmp_path / "xl", tiny_sdxl)
  loaded = pipeline.load_pipeline(tmp_path / "xl", {"frozen_dtype": "bfloat16"})
  assert loaded.configs == tiny_sdxl.configs and loaded.scheduler == tiny_sdxl.scheduler
  same(loaded.params["unet"], tiny_sdxl.params["unet"])
  # "text_encoder" in frozen_parts means both.
  kernel = loaded.params["text_encoder_2"]["text_projection"]["kernel"]
  assert kernel.dtype == jnp.bfloat16 and kernel.shape == (12, 10)
  prompts = ["A CAT, by the sea", ""]
  for name in ("tokenizer", "tokenizer_2"):
    ids = getattr(loaded, name)(prompts)
    np.testing.assert_array_equal(ids, getattr(tiny_sdxl, name)(prompts))
  index = json.loads((tmp_path / "xl" / "model_index.json").read_text())
  assert index["_class_name"] == "StableDiffusionXLPipeline"
  assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
  config = json.loads((tmp_path / "xl" / "text_encoder_2" / "config.json").read_text())
  assert config["architectures"] == ["CLIPTextModelWithProjection"]
  assert config["pad_token_id"] == tiny_sdxl.tokenizer_2.token_id("!")

  vocab = tmp_path / "xl" / "tokenizer_2" / "vocab.json"
  words = json.loads(vocab.read_text())
  first, second, *_ = words
  vocab.write_text(json.dumps(words | {first: words[second], second: words[first]}))
  with pytest.raises(ConfigError, match="tokenizer_2/ have different vocabularies"):
    pipeline.load_pipeline(tmp_path / "xl")
