"""What is at a path that was given for a model, and what every reader of a model says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import clip, factory, lora_files, pipeline, places, torch_zip
from udp_jax.models.ddpm_unet import UNet2DConfig

GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "unet_cifar_like"
POINTER = (
  "version https://git-lfs.github.com/spec/v1\n"
  "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def _write(folder: Path, files: dict[str, object]) -> Path:
  for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
  return folder


def _index(**parts: object) -> dict[str, object]:
  """The model_index.json of a Stable Diffusion folder with other parts."""
  usual = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
  }
  return usual | parts


UNET, VAE = {"_class_name": "UNet2DConditionModel"}, {"_class_name": "AutoencoderKL"}
XL_UNET = UNET | {"addition_embed_type": "text_time"}
DDPM = {"_class_name": "UNet2DModel"}
# What is in a folder, the error, and what it says.
FOLDERS = {
  "no vae": ({"unet/config.json": UNET}, MissingDataError, r"has no vae/config.json"),
  "no vae, no class": (
    {"unet/config.json": {"down_block_types": ["CrossAttnDownBlock2D"]}},
    MissingDataError,
    r"has no vae/config.json",
  ),
  "no unet": ({"vae/config.json": VAE}, MissingDataError, r"has no unet/config.json"),
  "empty": ({}, MissingDataError, r"is an empty folder, not a model; .*hf download"),
  "pictures": ({"a.png": "x"}, MissingDataError, r"is no model: no unet/config.json"),
  "checkpoint inside": (
    {"v1-5-pruned.safetensors": "x", "README.md": "x"},
    ConfigError,
    r"is no model folder; did you mean the file .*v1-5-pruned.safetensors\?",
  ),
  "pickle inside": (
    {"v1-5-pruned.ckpt": "x"},
    ConfigError,
    r"v1-5-pruned.ckpt is a single-file checkpoint that is a pickle, .* Convert it",
  ),
  "pointer inside": (
    {"v1-5-pruned.ckpt": POINTER},
    MissingDataError,
    r"v1-5-pruned.ckpt is a Git LFS pointer.*git lfs pull",
  ),
  "one above": (
    {"sd/model_index.json": {"_class_name": "StableDiffusionPipeline"}},
    MissingDataError,
    r"did you mean .*sd\?",
  ),
  "xl": (
    {
      "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
      "unet/config.json": XL_UNET,
      "vae/config.json": VAE,
    },
    MissingDataError,
    r"has no text_encoder/config.json: Stable Diffusion XL has two text encoders",
  ),
  "xl without its second encoder": (
    {"unet/config.json": XL_UNET, "vae/config.json": VAE, "text_encoder/config.json": {}},
    MissingDataError,
    r"has no text_encoder_2/config.json: Stable Diffusion XL has two text encoders",
  ),
  "xl with another unet": (
    {
      "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
      "unet/config.json": UNET,
      "vae/config.json": VAE,
    },
    ConfigError,
    r"is not Stable Diffusion XL's, and model_index.json promises a StableDiffusionXLPipeline",
  ),
  "xl refiner": (
    {
      "model_index.json": {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None],
      },
      "unet/config.json": XL_UNET,
      "vae/config.json": VAE,
      "text_encoder_2/config.json": {},
    },
    ConfigError,
    r"is the refiner of Stable Diffusion XL",
  ),
  "sd3": (
    {"model_index.json": {"_class_name": "StableDiffusion3Pipeline"}, "vae/config.json": VAE},
    ConfigError,
    r"is Stable Diffusion 3",
  ),
  "flux": (
    {"model_index.json": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "F"]}},
    ConfigError,
    r"is Flux \(FluxPipeline, transformer\)",
  ),
  "flux without index": (
    {"transformer/config.json": {"_class_name": "FluxTransformer2DModel"}},
    ConfigError,
    r"is Flux",
  ),
  "another family": (
    {"model_index.json": {"_class_name": "NewPipeline", "prior": ["diffusers", "P"]}},
    ConfigError,
    r"a model of another family \(NewPipeline, prior\)",
  ),
  "video": (
    {
      "model_index.json": {
        "_class_name": "StableVideoDiffusionPipeline",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
      },
      "unet/config.json": {"_class_name": "UNetSpatioTemporalConditionModel"},
    },
    ConfigError,
    r"is a StableVideoDiffusionPipeline: its unet is a UNetSpatioTemporalConditionModel, which is",
  ),
  "another vae": (
    {"model_index.json": _index(vae=["diffusers", "AutoencoderTiny"])},
    ConfigError,
    r"is a StableDiffusionPipeline: its vae is a AutoencoderTiny, which is not supported",
  ),
  "another text encoder": (
    {"model_index.json": _index(text_encoder=["alt_diffusion", "RobertaSeriesModel"])},
    ConfigError,
    r"its text_encoder is a RobertaSeriesModel",
  ),
  "flow matching": (
    {"model_index.json": _index(scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])},
    ConfigError,
    r"its scheduler is a FlowMatchEulerDiscreteScheduler",
  ),
  "a controlnet beside it": (
    {"model_index.json": _index(controlnet=["diffusers", "ControlNetModel"])},
    ConfigError,
    r"its controlnet is a ControlNetModel",
  ),
  "unconditional latent": (
    {"unet/config.json": DDPM, "vae/config.json": VAE},
    ConfigError,
    r"a UNet2DModel with a VAE beside it",
  ),
  "only a unet": ({"config.json": UNET}, MissingDataError, r"only the U-Net of Stable Diffusion"),
  "only a vae": ({"config.json": VAE}, MissingDataError, r"only the VAE of Stable Diffusion"),
  "clip": (
    {"config.json": {"architectures": ["CLIPModel"]}},
    ConfigError,
    r"holds a CLIPModel, which is no diffusion model",
  ),
  "nothing of a unet": (
    {"model_index.json": {"_class_name": "StableDiffusionPipeline"}, "unet/config.json": {}},
    BadDataError,
    r"unet/config.json is incomplete: .*model_index.json promises a StableDiffusionPipeline",
  ),
  "nothing of a unet, no index": (
    {"unet/config.json": {}, "vae/config.json": VAE},
    BadDataError,
    r"unet/config.json is incomplete: it names neither a class nor blocks\. Download",
  ),
  "another unet than promised": (
    {"model_index.json": {"_class_name": "StableDiffusionPipeline"}, "unet/config.json": DDPM},
    BadDataError,
    r"describes a UNet2DModel, and model_index.json promises a StableDiffusionPipeline",
  ),
  "damaged": ({"unet/config.json": "{"}, BadDataError, r"not readable JSON"),
  "config is a pointer": (
    {"unet/config.json": POINTER},
    MissingDataError,
    r"config.json is a Git LFS pointer",
  ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_folder_is(name: str, tmp_path: Path) -> None:
  files, error, message = FOLDERS[name]
  folder = _write(tmp_path / "model", files)
  folder.mkdir(exist_ok=True)
  config = _config(folder)
  for read in (
    places.kind_of,
    pipeline.load_pipeline,
    factory.load,
    lambda _: factory.open_model(config, {"dtype": "float32"}),
  ):
    with pytest.raises(error, match=message):
      read(folder)


def _config(path: Path):
  from ml_collections import ConfigDict

  return ConfigDict({"path": str(path), "unet": {}, "schedule": "linear"})


@pytest.mark.parametrize(
  ("name", "error", "message"),
  [
    ("sd.safetensors", BadDataError, r"sd.safetensors is not a readable safetensors file"),
    ("sd.gguf", ConfigError, r"sd.gguf holds quantised weights, which are not read\. Convert it"),
    (
      "sd.ckpt",
      ConfigError,
      r"single-file checkpoint that is a pickle, which is never",
    ),
    ("model_index.json", ConfigError, r"is a file: a model is a folder"),
    ("pointer.safetensors", MissingDataError, r"is a Git LFS pointer"),
  ],
)
def test_a_file(name: str, error: type, message: str, tmp_path: Path) -> None:
  file = tmp_path / name
  file.write_text(POINTER if "pointer" in name else "x")
  with pytest.raises(error, match=message):
    places.kind_of(file)


def test_a_ckpt_is_never_unpickled(tmp_path: Path) -> None:
  import pickle

  class Runs:
    def __reduce__(self):
      return (Path(tmp_path / "ran").touch, ())

  (tmp_path / "sd.ckpt").write_bytes(pickle.dumps(Runs()))
  with pytest.raises(ConfigError, match="single-file"):
    factory.open_model(_config(tmp_path / "sd.ckpt"), {"dtype": "float32"})
  assert not (tmp_path / "ran").exists()


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)  # Models by name: tests/models/test_hub.py.
  name = "runwayml/stable-diffusion-v1-5"
  with pytest.raises(MissingDataError, match=f"from a folder only. .*hf download {name} --local"):
    clip.load(name)


def test_a_usual_folder_is_read(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
  folder = tmp_path / "model"
  shutil.copytree(tiny_pipeline_folder, folder)
  _write(folder, {"model_index.json": _index()})
  assert places.kind_of(folder) == places.LATENT


def test_models_that_are_read(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
  assert places.kind_of(tiny_pipeline_folder) == places.kind_of("tiny_ldm") == places.LATENT
  assert places.kind_of(GOLDEN) == places.PIXEL
  # The U-Net of a DDPM alone, as `UNet2DModel.save_pretrained` writes it.
  home = GOLDEN if (GOLDEN / "config.json").is_file() else GOLDEN / "unet"
  shutil.copytree(home, tmp_path / "alone")
  assert places.kind_of(tmp_path / "alone") == places.PIXEL
  with pytest.raises(ConfigError, match="a model of pixels is needed"):
    factory.load(tiny_pipeline_folder)
  with pytest.raises(ConfigError, match="holds a model of pixels"):
    pipeline.load_pipeline(GOLDEN)


def test_weights_that_are_pointers(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
  folder = tmp_path / "model"
  shutil.copytree(tiny_pipeline_folder, folder)
  for file in sorted(folder.rglob("*.safetensors")):
    before = file.read_bytes()
    file.write_text(POINTER)
    with pytest.raises(MissingDataError, match=f"{file.name} is a Git LFS pointer"):
      pipeline.load_pipeline(folder)
    file.write_bytes(before)


def test_other_weight_files_that_are_pointers(tmp_path: Path) -> None:
  from udp_jax.models import face_embedding, features, perceptual

  file = tmp_path / "weights.safetensors"
  file.write_text(POINTER)
  shutil.copy(file, tmp_path / "face.pth")
  for read in (
    lambda: lora_files.read_tensors(file),
    lambda: features.load("inception_v3", weights=file),
    lambda: features.load("efficientnet_lite0", weights=file),
    lambda: perceptual.load("lpips_vgg", weights=file),
    lambda: face_embedding.load(file),
    lambda: face_embedding.load(tmp_path / "face.pth"),
    lambda: torch_zip.read_tensors(file, sha256="0"),
  ):
    with pytest.raises(MissingDataError, match="is a Git LFS pointer"):
      read()


def test_blocks_that_this_library_does_not_have(tmp_path: Path) -> None:
  config = UNet2DConfig(block_out_channels=(32,), down_block_types=("DownBlock2D",),
                        up_block_types=("UpBlock2D",)).to_dict()  # fmt: skip
  config |= DDPM | {"down_block_types": ["KDownBlock2D"]}
  folder = _write(tmp_path / "model", {"unet/config.json": config})
  tensors = {"x": np.zeros(1, np.float32)}
  safetensors.numpy.save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
  with pytest.raises(ConfigError, match=r"model: unknown U-Net block 'KDownBlock2D'.*supported"):
    factory.load(folder)
