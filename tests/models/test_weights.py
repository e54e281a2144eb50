"""Reading and writing diffusers' folder layout, with files that PyTorch diffusers wrote."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from udp_jax.errors import BadDataError, MissingDataError, OutputError
from udp_jax.models import weights
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.ops import schedules

GOLDENS = Path(__file__).parents[1] / "goldens"
PIPELINE = GOLDENS / "unet_cifar_like"
SHARDED = GOLDENS / "unet_defaults_fp16"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def shapes(fields):
  config = UNet2DConfig.from_dict(fields)
  x_t = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(UNet2D(config).init, jax.random.key(0), x_t, timesteps)["params"]


@pytest.fixture(scope="module")
def golden():
  """Config fields, tensors and the params template of the float32 golden model."""
  fields, tensors = weights.load_pretrained(PIPELINE)
  return fields, tensors, shapes(fields)


@pytest.fixture
def model(tmp_path):
  """A copy of the float32 golden's model folder, to damage."""
  return Path(shutil.copytree(PIPELINE / "unet", tmp_path / "model"))


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("down_blocks_0/resnets_1/conv1/kernel", "down_blocks.0.resnets.1.conv1.weight"),
    ("mid_block/attentions_0/to_out_0/bias", "mid_block.attentions.0.to_out.0.bias"),
    ("up_blocks_3/upsamplers_0/conv/kernel", "up_blocks.3.upsamplers.0.conv.weight"),
    ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
    ("conv_norm_out/scale", "conv_norm_out.weight"),
    (
      "down_blocks_10/attentions_0/transformer_blocks_0/ff/net_2/kernel",
      "down_blocks.10.attentions.0.transformer_blocks.0.ff.net.2.weight",
    ),
    (
      "text_model/encoder/layers_11/self_attn/k_proj/bias",
      "text_model.encoder.layers.11.self_attn.k_proj.bias",
    ),
    (
      "text_model/embeddings/token_embedding/embedding",
      "text_model.embeddings.token_embedding.weight",
    ),
  ],
)
def test_names(path, name):
  assert weights.torch_name(tuple(path.split("/"))) == name


def test_unknown_kind_of_parameter_is_refused():
  with pytest.raises(ValueError, match="conv/gamma"):
    weights.torch_name(("conv", "gamma"))


def test_layouts_of_every_kind_of_parameter():
  generator = np.random.default_rng(0)
  params = {
    "conv": {"kernel": generator.normal(size=(3, 5, 2, 4))},
    "dense": {"kernel": generator.normal(size=(2, 4)), "bias": generator.normal(size=4)},
    "norm": {"scale": generator.normal(size=4)},
    "tokens": {"embedding": generator.normal(size=(7, 4))},
  }
  params = jax.tree.map(np.float32, params)
  tensors = weights.to_torch_names(params)
  assert {name: value.shape for name, value in tensors.items()} == {
    "conv.weight": (4, 2, 3, 5),
    "dense.weight": (4, 2),
    "dense.bias": (4,),
    "norm.weight": (4,),
    "tokens.weight": (7, 4),
  }
  assert tensors["conv.weight"][3, 1, 2, 4] == params["conv"]["kernel"][2, 4, 1, 3]
  assert tensors["dense.weight"][3, 1] == params["dense"]["kernel"][1, 3]
  back = weights.from_torch_names(tensors, params)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_round_trip_of_diffusers_file_is_bit_equal(golden, tmp_path):
  fields, tensors, template = golden
  params = weights.from_torch_names(tensors, template)
  weights.save_pretrained(tmp_path / "ours", fields, params)
  again_fields, again = weights.load_pretrained(tmp_path / "ours", class_name="UNet2DModel")
  assert again_fields == fields
  assert again.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert tensor.dtype == again[name].dtype == np.float32
    np.testing.assert_array_equal(again[name], tensor)
  with safetensors.safe_open(tmp_path / "ours" / WEIGHTS, "numpy") as file:
    assert file.metadata() == {"format": "pt"}
  assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", WEIGHTS]


def test_saved_weights_have_ordinary_permissions(golden, tmp_path):
  fields, tensors, template = golden
  weights.save_pretrained(tmp_path, fields, weights.from_torch_names(tensors, template))
  (tmp_path / "ordinary").touch()
  assert (tmp_path / WEIGHTS).stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_bfloat16_params_are_saved_as_float32(tmp_path):
  params = {"dense": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}}
  weights.save_pretrained(tmp_path, {}, params)
  _, tensors = weights.load_pretrained(tmp_path)
  assert tensors["dense.weight"].dtype == np.float32
  np.testing.assert_array_equal(tensors["dense.weight"], [[0, 3], [1, 4], [2, 5]])


def test_sharded_half_precision_file(golden):
  fields, tensors = weights.load_pretrained(SHARDED)
  params = weights.from_torch_names(tensors, shapes(fields))
  assert {value.dtype for value in tensors.values()} == {np.dtype(np.float16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  explicit = weights.load_pretrained(SHARDED, variant="fp16")[1]
  assert explicit.keys() == tensors.keys()
  with pytest.raises(MissingDataError, match="fp16"):
    weights.load_pretrained(PIPELINE, variant="fp16")


def test_full_precision_goes_before_a_variant(model):
  half = {"a": np.zeros(1, np.float16)}
  safetensors.numpy.save_file(half, model / "diffusion_pytorch_model.fp16.safetensors")
  assert "conv_in.weight" in weights.load_pretrained(model)[1]
  assert list(weights.load_pretrained(model, variant="fp16")[1]) == ["a"]


def test_bfloat16_file(model):
  safetensors.numpy.save_file({"a": np.ones(2, jnp.bfloat16)}, model / WEIGHTS)
  assert weights.load_pretrained(model)[1]["a"].dtype == jnp.bfloat16


def test_attention_names_of_old_files(golden):
  _, tensors, template = golden
  old_names = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
  }
  old = {}
  for name, tensor in tensors.items():
    for new, legacy in old_names.items():
      name = name.replace(new, legacy)
    old[name] = tensor
  assert sum("proj_attn" in name for name in old) == 8
  expected = weights.from_torch_names(tensors, template)
  actual = weights.from_torch_names(old, template)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_misfit_is_named(golden):
  _, tensors, template = golden
  tensors = dict(tensors)
  del tensors["conv_in.bias"]
  tensors["extra.weight"] = np.zeros(3, np.float32)
  tensors["conv_out.bias"] = np.zeros(4, np.float32)
  tensors["text_model.embeddings.position_ids"] = np.arange(3)  # A constant: no misfit.
  with pytest.raises(BadDataError) as caught:
    weights.from_torch_names(tensors, template, origin="my.safetensors")
  message = str(caught.value)
  assert message.startswith("my.safetensors")
  assert "1 missing: conv_in.bias" in message
  assert "1 unexpected: extra.weight" in message
  assert "1 mis-shaped: conv_out.bias (as (4,), wanted (3,))" in message
  assert "position_ids" not in message and "\n" not in message


def test_transposed_kernel_is_mis_shaped_and_not_accepted(golden):
  _, tensors, template = golden
  name = "time_embedding.linear_1.weight"
  with pytest.raises(BadDataError, match="linear_1"):
    weights.from_torch_names({**tensors, name: tensors[name].T}, template)


def test_missing_folder_says_how_to_get_one(tmp_path):
  with pytest.raises(MissingDataError, match="config.json.*hf download OWNER/MODEL"):
    weights.load_pretrained(tmp_path / "absent")


def test_missing_weights(model):
  (model / WEIGHTS).unlink()
  with pytest.raises(MissingDataError, match=f"no {WEIGHTS} in .*hf download"):
    weights.load_pretrained(model)
  # Whoever would unpickle it would fail on it in another way.
  (model / "diffusion_pytorch_model.bin").write_bytes(b"not a pickle")
  with pytest.raises(MissingDataError, match="diffusion_pytorch_model.bin.*save_pretrained"):
    weights.load_pretrained(model)


def test_damaged_files(model):
  content = (model / WEIGHTS).read_bytes()
  for damage in (b"", content[:4], content[: len(content) // 2], b"\xff" * 64):
    (model / WEIGHTS).write_bytes(damage)
    with pytest.raises(BadDataError, match=WEIGHTS):
      weights.load_pretrained(model)
  for damage in ("", "[1]", '{"a": '):
    (model / "config.json").write_text(damage)
    with pytest.raises(BadDataError, match=r"config\.json"):
      weights.load_pretrained(model)


def test_another_class(model):
  with pytest.raises(BadDataError, match="UNet2DModel, not a AutoencoderKL"):
    weights.load_pretrained(model, class_name="AutoencoderKL")


def test_damaged_shards(tmp_path):
  folder = Path(shutil.copytree(SHARDED, tmp_path / "model"))
  index = folder / "diffusion_pytorch_model.safetensors.index.fp16.json"
  shard = sorted(folder.glob("*-00002-of-*"))[0]
  content = json.loads(index.read_text())
  content["weight_map"]["absent.weight"] = shard.name
  index.write_text(json.dumps(content))
  with pytest.raises(BadDataError, match="absent.weight"):
    weights.load_pretrained(folder)
  shard.unlink()
  with pytest.raises(MissingDataError, match="00002"):
    weights.load_pretrained(folder)
  content["weight_map"]["absent.weight"] = "../secret.safetensors"
  index.write_text(json.dumps(content))
  with pytest.raises(BadDataError, match="outside"):
    weights.load_pretrained(folder)
  index.write_text("{}")
  with pytest.raises(BadDataError, match="weight_map"):
    weights.load_pretrained(folder)


def test_save_refuses_what_it_cannot_do(golden, tmp_path):
  fields, tensors, template = golden
  params = weights.from_torch_names(tensors, template)
  (tmp_path / "file").write_text("")
  with pytest.raises(OutputError, match="cannot write"):
    weights.save_pretrained(tmp_path / "file" / "model", fields, params)
  folder = Path(shutil.copytree(SHARDED, tmp_path / "sharded"))
  with pytest.raises(OutputError, match="sharded"):
    weights.save_pretrained(folder, fields, params)


def test_failed_save_leaves_the_old_model(golden, model, monkeypatch):
  fields, tensors, template = golden
  params = weights.from_torch_names(tensors, template)

  def full_disk(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")

  before = {path.name: path.read_bytes() for path in model.iterdir()}
  monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
  with pytest.raises(OutputError, match="no space left"):
    weights.save_pretrained(model, {"sample_size": 1}, params)
  assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_killed_save_never_pairs_a_config_with_other_weights(golden, model, monkeypatch):
  fields, tensors, template = golden
  params = weights.from_torch_names(tensors, template)
  renamed = []

  def killed(source, target):
    renamed.append(target)
    assert not (model / "config.json").exists()
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    weights.save_pretrained(model, fields, params)
  assert renamed == [model / WEIGHTS]
  assert os.listdir(model) == [WEIGHTS]


def test_pipeline_layout(golden, tmp_path):
  fields, tensors, template = golden
  params = weights.from_torch_names(tensors, template)
  schedule = schedules.cosine(50, prediction_type="v_prediction")
  weights.save_pipeline(tmp_path, fields, params, weights.scheduler_config(schedule))
  names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
  assert names == [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    f"unet/{WEIGHTS}",
  ]
  theirs = json.loads((PIPELINE / "model_index.json").read_text())
  del theirs["_diffusers_version"]
  assert json.loads((tmp_path / "model_index.json").read_text()) == theirs
  # From the pipeline's folder and from the model's.
  for folder in (tmp_path, tmp_path / "unet"):
    assert weights.load_pretrained(folder)[0] == fields
    loaded = weights.schedule_from_config(weights.load_scheduler_config(folder))
    assert loaded.prediction_type == "v_prediction"
    np.testing.assert_array_equal(loaded.alphas_cumprod, schedule.alphas_cumprod)


def test_scheduler_config_of_diffusers():
  fields = weights.load_scheduler_config(PIPELINE)
  schedule = weights.schedule_from_config(fields)
  assert schedule.prediction_type == "v_prediction"
  with np.load(GOLDENS / "schedules.npz") as file:
    np.testing.assert_allclose(schedule.alphas_cumprod, file["cosine"], rtol=5e-5)


def test_no_scheduler_config_is_none(tmp_path):
  assert weights.load_scheduler_config(tmp_path) is None


@pytest.mark.parametrize(
  ("schedule", "kind"),
  [
    (schedules.linear(), "linear"),
    (schedules.linear(20, prediction_type="sample"), "linear"),
    (schedules.scaled_linear(), None),
    (schedules.from_betas(np.linspace(0.001, 0.3, 30)), None),
    (schedules.zero_snr(schedules.linear(100, prediction_type="v_prediction")), None),
  ],
)
def test_any_schedule_survives_its_config(schedule, kind):
  fields = json.loads(json.dumps(weights.scheduler_config(schedule, clip_sample=False)))
  assert fields.get("beta_schedule") == kind
  assert fields["clip_sample"] is False
  back = weights.schedule_from_config(fields)
  assert back.prediction_type == schedule.prediction_type
  np.testing.assert_allclose(back.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-6)


@pytest.mark.parametrize(
  "fields",
  [
    {"beta_schedule": "sigmoid"},
    {"prediction_type": "flow"},
    {"rescale_betas_zero_snr": True},
    {"num_train_timesteps": "many"},
    {"trained_betas": [0.5, 2.0]},
  ],
)
def test_unknown_schedules_are_refused(fields):
  with pytest.raises(BadDataError, match="scheduler_config.json"):
    weights.schedule_from_config(fields)
