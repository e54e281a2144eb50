"""Checkpoints of one file: the table of names, configs from shapes, refusals, whole loads."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.models import original_names
from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import pipeline, places, published, single_file, weights
from udp_jax.models.clip_text import CLIPTextConfig
from udp_jax.models.sd_unet import UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKLConfig
from udp_jax.models.tensor_files import Stored, Tensors

PUBLISHED = Path(__file__).parent / "published"


def random(shapes: original_names.Shapes, dtype=np.float32) -> dict[str, np.ndarray]:
  """The same random values for the same name everywhere."""
  made = {}
  for name, shape in shapes.items():
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, np.float32) * 0.05
    made[name] = np.asarray(values).astype(dtype)
  return made


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A vocabulary of CLIP's size with merges of two bytes."""
  from udp_jax.models.tokenizer import BOS, EOS, Tokenizer, alphabet

  basic = alphabet()
  merges = [(a, b) for a in basic[:256] for b in basic[:256]][: 49408 - 514]
  tokens = [*basic, *(a + b for a, b in merges), BOS, EOS]
  folder = tmp_path_factory.mktemp("clip") / "tokenizer"
  Tokenizer({token: i for i, token in enumerate(tokens)}, merges).save(folder)
  return folder


def without_values(shapes: original_names.Shapes, metadata=None) -> Tensors:
  """Tensors of which only names and shapes are known."""
  stored = {n: Stored(Path("none"), np.dtype(np.float16), s, 0) for n, s in shapes.items()}
  return Tensors(stored, metadata)


def opened(monkeypatch, shapes, metadata=None, **options) -> single_file.Parts:
  monkeypatch.setattr(single_file, "open_tensors", lambda _: without_values(shapes, metadata))
  return single_file.open_file("x.safetensors", **options)


def shapes_of(renamed: single_file.Renamed) -> dict[str, tuple[int, ...]]:
  """Shapes under the new names, with what is done to the tensors, but without values."""

  def shape(theirs: str, take) -> tuple[int, ...]:
    whole = np.broadcast_to(np.float16(0), renamed.tensors.shape(theirs))
    return whole.shape if take is None else take(whole).shape

  return {name: shape(*entry) for name, entry in renamed.table.items()}


def table(name: str) -> dict[str, tuple[int, ...]]:
  content = json.loads((PUBLISHED / f"{name}.json").read_text())
  base = table(content["as"]) if "as" in content else {}
  return base | {tensor: tuple(shape) for tensor, shape in content["tensors"].items()}


@pytest.mark.parametrize(
  ("kind", "architecture", "channels", "tables"),
  [
    ("sd1", "sd15", 4, ("sd14_unet", "sd_vae", "clip_vit_l14_text")),
    ("sd1", "sd15_inpainting", 9, ("sd15_inpainting_unet", "sd_vae", "clip_vit_l14_text")),
    ("sd2", "sd21", 4, ("sd21_unet", "sd_vae", "openclip_h_text")),
  ],
)
def test_full_size_names_shapes_and_configs(
  kind: str, architecture: str, channels: int, tables, monkeypatch: pytest.MonkeyPatch
) -> None:
  shapes = original_names.checkpoint(kind, small=False, in_channels=channels)
  made = opened(monkeypatch, shapes)
  configs, scheduler = published.architecture(architecture)
  for part, name in zip(("unet", "vae", "text_encoder"), tables):
    found = {n: s for n, s in shapes_of(made.tensors[part]).items() if n != "logit_scale"}
    assert found == table(name)
  assert UNet2DConditionConfig.from_dict(made.configs["unet"]) == configs["unet"]
  assert AutoencoderKLConfig.from_dict(made.configs["vae"]) == configs["vae"]
  text = CLIPTextConfig.from_dict(made.configs["text_encoder"])
  pad = {"pad_token_id": configs["text_encoder"].pad_token_id}  # The tokenizer's matter.
  assert vars(text) | pad == vars(configs["text_encoder"])
  assert scheduler.items() <= ({"prediction_type": "epsilon"} | made.scheduler).items()


def test_xl_is_recognised_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
  shapes = original_names.checkpoint("sdxl", small=False)
  made = opened(monkeypatch, shapes)
  assert made.family == single_file.SDXL and made.scheduler["prediction_type"] == "epsilon"
  unet = made.configs["unet"]
  assert unet["transformer_layers_per_block"] == [1, 2, 10]
  assert unet["attention_head_dim"] == [5, 10, 20] and unet["sample_size"] == 128
  assert unet["addition_embed_type"] == "text_time" and unet["addition_time_embed_dim"] == 256
  assert unet["projection_class_embeddings_input_dim"] == 2816
  assert unet["down_block_types"] == ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2]
  assert made.configs["vae"]["scaling_factor"] == 0.13025
  second = made.configs["text_encoder_2"]
  assert (second["hidden_size"], second["num_hidden_layers"]) == (1280, 32)
  assert (second["hidden_act"], second["projection_dim"]) == ("gelu", 1280)
  # As the authors of the published files count them.
  sizes = {
    part: sum(int(np.prod(shape)) for shape in shapes_of(renamed).values())
    for part, renamed in made.tensors.items()
  }
  assert sizes["unet"] == 2_567_463_684
  assert sizes["text_encoder"] == 123_060_480 and sizes["text_encoder_2"] == 694_659_840


@pytest.mark.parametrize(
  ("kind", "channels", "extra", "metadata", "option", "wanted", "size"),
  [
    ("sd1", 4, {}, {}, "", "epsilon", 64),
    ("sd2", 4, {}, {}, "", "v_prediction", 96),
    ("sd2", 4, {}, {}, "epsilon", "epsilon", 64),
    ("sd2", 9, {}, {}, "", "epsilon", 64),
    ("sd2", 4, {}, {"modelspec.prediction_type": "epsilon"}, "", "epsilon", 64),
    ("sd1", 4, {}, {"modelspec.prediction_type": "v"}, "", "v_prediction", 64),
    ("sd1", 4, {"v_pred": ()}, {}, "", "v_prediction", 64),
  ],
)
def test_what_a_model_predicts(
  kind, channels, extra, metadata, option, wanted, size, monkeypatch: pytest.MonkeyPatch
) -> None:
  shapes = original_names.checkpoint(kind, in_channels=channels) | extra
  made = opened(monkeypatch, shapes, metadata, prediction_type=option)
  assert made.scheduler["prediction_type"] == wanted
  assert made.configs["unet"]["sample_size"] == size
  with pytest.raises(ConfigError, match="prediction_type is 'noise'; known: epsilon, v_pred"):
    opened(monkeypatch, shapes, prediction_type="noise")


def test_version_2_base_by_its_steps(tmp_path: Path) -> None:
  tensors = random(original_names.checkpoint("sd2"), np.float16)
  for steps, wanted in ((875000, "epsilon"), (220000, "v_prediction")):
    file = tmp_path / f"{steps}.safetensors"
    safetensors.numpy.save_file(tensors | {"global_step": np.asarray(steps)}, file)
    assert single_file.open_file(file).scheduler["prediction_type"] == wanted


CHECKPOINT = original_names.checkpoint("sd1")
REFUSED = {
  "lora": ({"lora_unet_down_blocks_0.lora_down.weight": (4, 4)}, "is a LoRA, not a model"),
  "flux": ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "is a Flux model"),
  "flux, wrapped": ({"model.diffusion_model.double_blocks.0.x.weight": (4,)}, "is a Flux model"),
  "sd3": ({"model.diffusion_model.joint_blocks.0.x.weight": (4,)}, "is Stable Diffusion 3"),
  "controlnet": ({"control_model.time_embed.0.weight": (4, 4)}, "is a ControlNet"),
  "refiner": (
    original_names.checkpoint("sdxl") | {"conditioner.embedders.0.model.ln_final.bias": (4,)},
    "is the refiner of XL",
  ),
  "a diffusers part": ({"down_blocks.0.resnets.0.conv1.weight": (4,)}, "one part of a diffusers"),
  "a vae": (original_names.vae(True), "is a VAE alone: `--vae` takes it"),
  "a text encoder": (original_names.clip("small"), "is a text encoder alone"),
  "a learned token": ({"emb_params": (1, 768)}, "is a learned token"),
  "nothing": ({"x": (1,)}, r"is no Stable Diffusion checkpoint: .*\(there are: x\)"),
  "no text": (
    {n: s for n, s in CHECKPOINT.items() if not n.startswith("cond_stage")},
    "has no text encoder",
  ),
  "no vae": (
    {n: s for n, s in CHECKPOINT.items() if not n.startswith("first_stage")},
    r"has no VAE \(first_stage_model\.\*\): give one with --vae=FILE",
  ),
  "damaged": (
    {n: s for n, s in CHECKPOINT.items() if "input_blocks.0.0" not in n},
    "is not the Stable Diffusion 1.x that its names promise; .*conv_in.weight",
  ),
}


REFUSED["too many"] = (
  CHECKPOINT | {"model.diffusion_model.input_blocks.999999999999.0.in_layers.2.weight": (4,)},
  "it lacks or misshapes numbers up to 100",
)


@pytest.mark.parametrize("what", REFUSED)
def test_other_files(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
  shapes, message = REFUSED[what]
  with pytest.raises((ConfigError, MissingDataError, BadDataError), match=message):
    opened(monkeypatch, shapes)


def test_models_that_take_other_conditions_are_refused_by_their_config(monkeypatch) -> None:
  shapes = original_names.checkpoint("sd2") | {
    "model.diffusion_model.label_emb.0.0.weight": (256, 128),
    "model.diffusion_model.label_emb.0.0.bias": (256,),
  }
  made = opened(monkeypatch, shapes)
  with pytest.raises(ConfigError, match="class_embed_type='projection' is not supported"):
    UNet2DConditionConfig.from_dict(made.configs["unet"])


def _write(file: Path, kind: str, dtype=np.float16, drop: str = "") -> dict[str, np.ndarray]:
  tensors = random(original_names.checkpoint(kind), dtype)
  if drop:
    tensors = {name: value for name, value in tensors.items() if not name.startswith(drop)}
  safetensors.numpy.save_file(tensors, file)
  return tensors


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_file_is_the_model_that_its_folder_is(
  kind: str, vocabulary_folder: Path, tmp_path: Path
) -> None:
  file = tmp_path / "model.safetensors"
  tensors = _write(file, kind)
  assert places.kind_of(file) == places.LATENT
  choices = pipeline.Choices(tokenizer=str(vocabulary_folder))
  loaded = pipeline.load_pipeline(file, choices=choices)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}
  # A value of each kind of tensor, where the authors' own code reads it.
  unet, text = loaded.params["unet"], loaded.params["text_encoder"]["text_model"]
  first = tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"]
  kernel = unet["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
  np.testing.assert_array_equal(kernel, np.transpose(first, (2, 3, 1, 0)).astype(np.float32))
  query = text["encoder"]["layers_1"]["self_attn"]["q_proj"]["kernel"]
  if kind == "sd1":
    theirs = tensors[
      "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
    ]
  else:
    theirs = tensors["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"][:64]
  np.testing.assert_array_equal(query, theirs.T.astype(np.float32))
  pipeline.save_pipeline_folder(tmp_path / "folder", loaded)
  again = pipeline.load_pipeline(tmp_path / "folder")
  for one, other in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(again.params)):
    np.testing.assert_array_equal(one, other)
  assert again.configs == loaded.configs
  ids = loaded.tokenizer(["a dog"])
  assert ids[0, -1] == (49407 if kind == "sd1" else 0)
  np.testing.assert_array_equal(again.tokenizer(["a dog"]), ids)
  narrow = pipeline.load_pipeline(file, {"frozen_dtype": "bfloat16"}, choices=choices).params
  encoder = narrow["text_encoder"]["text_model"]["encoder"]["layers_1"]["self_attn"]["q_proj"]
  assert encoder["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(encoder["kernel"], query.astype(jnp.bfloat16))


def test_another_vae(vocabulary_folder: Path, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
  tokenizer = str(vocabulary_folder)
  whole, bare, alone = (tmp_path / f"{n}.safetensors" for n in ("whole", "bare", "alone"))
  _write(whole, "sd1")
  _write(bare, "sd1", drop="first_stage_model.")
  vae = {name: value + 1 for name, value in random(original_names.vae(True)).items()}
  safetensors.numpy.save_file(vae, alone)
  with pytest.raises(MissingDataError, match="has no VAE"):
    pipeline.load_pipeline(bare, choices=pipeline.Choices(tokenizer=tokenizer))
  made = pipeline.load_pipeline(bare, choices=pipeline.Choices(str(alone), tokenizer))
  kernel = made.params["vae"]["encoder"]["conv_in"]["kernel"]
  wanted = np.transpose(vae["encoder.conv_in.weight"], (2, 3, 1, 0))
  np.testing.assert_array_equal(kernel, wanted)
  assert made.configs["vae"].scaling_factor == 0.18215 and made.configs["vae"].sample_size == 512
  # From a whole checkpoint; from a folder, and diffusers' names in a file.
  other = pipeline.load_pipeline(whole, choices=pipeline.Choices(str(whole), tokenizer))
  own = pipeline.load_pipeline(whole, choices=pipeline.Choices(tokenizer=tokenizer))
  pipeline.save_pipeline_folder(tmp_path / "folder", made)
  in_folder = pipeline.load_pipeline(
    whole, choices=pipeline.Choices(str(tmp_path / "folder"), tokenizer)
  )
  named = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
  again = pipeline.load_pipeline(whole, choices=pipeline.Choices(str(named), tokenizer))
  for one, two in ((other, own), (in_folder, made), (again, made)):
    for leaf, wanted in zip(*(jax.tree.leaves(p.params["vae"]) for p in (one, two))):
      np.testing.assert_array_equal(leaf, wanted)
  with pytest.raises(ConfigError, match="is no VAE of Stable Diffusion"):
    unet = {"conv_in.weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(unet, alone)
    pipeline.load_pipeline(whole, choices=pipeline.Choices(str(alone), tokenizer))
  with pytest.raises(ConfigError, match="a tokenizer is chosen for checkpoints of one file"):
    pipeline.load_pipeline(tiny_pipeline_folder, choices=pipeline.Choices(tokenizer=tokenizer))
  predicted = pipeline.load_pipeline(
    tiny_pipeline_folder, choices=pipeline.Choices(prediction_type="v_prediction")
  )
  assert predicted.model.schedule.prediction_type == "v_prediction"


def test_averaged_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  tensors = random(CHECKPOINT, np.float16)
  averaged = {
    "model_ema." + name.removeprefix("model.").replace(".", ""): value * 2
    for name, value in tensors.items()
    if name.startswith("model.diffusion_model.")
  }
  file = tmp_path / "both.safetensors"
  safetensors.numpy.save_file(
    tensors | averaged | {"model_ema.decay": np.ones(1, np.float32)}, file
  )
  with caplog.at_level(logging.INFO):
    plain = single_file.open_file(file)
  assert "also has averaged weights" in caplog.text
  theirs = tensors["model.diffusion_model.out.2.bias"]
  np.testing.assert_array_equal(plain.tensors["unet"]["conv_out.bias"], theirs)
  ema = single_file.open_file(file, ema=True)
  np.testing.assert_array_equal(ema.tensors["unet"]["conv_out.bias"], theirs * 2)
  assert set(ema.tensors["unet"]) == set(plain.tensors["unet"])
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(MissingDataError, match="has no averaged weights"):
    single_file.open_file(file, ema=True)


def test_unknown_tensors_are_named(vocabulary_folder: Path, tmp_path: Path) -> None:
  tensors = random(CHECKPOINT, np.float16)
  tensors["model.diffusion_model.fuse.weight"] = np.zeros((2, 2), np.float16)
  file = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(BadDataError, match=r"x.safetensors \(unet\) do not fit.*1 unexpected: fuse"):
    choices = pipeline.Choices(tokenizer=str(vocabulary_folder))
    pipeline.load_pipeline(file, choices=choices)


def test_oldest_names_of_the_text_encoder(tmp_path: Path) -> None:
  shapes = {n.replace("transformer.text_model.", "transformer."): s for n, s in CHECKPOINT.items()}
  shapes["cond_stage_model.transformer.embeddings.position_ids"] = (1, 77)
  safetensors.numpy.save_file(random(shapes, np.float16), tmp_path / "x.safetensors")
  made = single_file.open_file(tmp_path / "x.safetensors")
  assert made.configs["text_encoder"]["num_hidden_layers"] == 2
  template = {
    "text_model": {"final_layer_norm": {"scale": jax.ShapeDtypeStruct((64,), np.float32)}}
  }
  with pytest.raises(BadDataError, match="unexpected") as raised:
    weights.from_torch_names(made.tensors["text_encoder"], template)
  assert "missing" not in str(raised.value)


def test_a_file_of_xl_is_the_model_that_its_folder_is(
  vocabulary_folder: Path, tmp_path: Path
) -> None:
  file = tmp_path / "model.safetensors"
  tensors = _write(file, "sdxl")
  assert places.kind_of(file) == places.LATENT
  loaded = pipeline.load_pipeline(file, choices=pipeline.Choices(tokenizer=str(vocabulary_folder)))
  second = loaded.params["text_encoder_2"]["text_projection"]["kernel"]
  theirs = tensors["conditioner.embedders.1.model.text_projection"]
  np.testing.assert_array_equal(second, theirs.astype(np.float32))
  assert loaded.configs["text_encoder_2"].pad_token_id == 0
  pipeline.save_pipeline_folder(tmp_path / "folder", loaded)
  again = pipeline.load_pipeline(tmp_path / "folder")
  assert again.configs == loaded.configs
  assert again.tokenizer_2.special == loaded.tokenizer_2.special != again.tokenizer.special
  for leaf, wanted in zip(*(jax.tree.leaves(p.params) for p in (again, loaded)), strict=True):
    np.testing.assert_array_equal(leaf, wanted)
