"""Fixtures that tests of several modules share: small models, pictures, and processes."""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from udp_jax.models import toy
from udp_jax.models.base import DiffusionModel
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.pixel import pixel_diffusion
from udp_jax.ops import schedules

pytest_plugins = ("tests.upkeep",)

# As the entry points do: tracing makes millions of objects that are no garbage.
gc.set_threshold(20_000, 20, 50)

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be every process that a
# test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


class TinyUNet(NamedTuple):
  model: DiffusionModel
  config: UNet2DConfig
  params: dict


@pytest.fixture(scope="session")
def tiny_model() -> TinyUNet:
  """A real U-Net of one level of 8 channels on 8x8 pictures, and parameters without zeros."""
  config = UNet2DConfig(
    sample_size=8,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
    add_attention=False,
  )
  model = pixel_diffusion(UNet2D(config), schedules.linear(50, beta_end=0.2))
  generator = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda s: generator.normal(size=s.shape).astype(s.dtype) * 0.2, shapes)
  return TinyUNet(model, config, params)


@pytest.fixture(scope="session")
def gaussian_model() -> DiffusionModel:
  """The best denoiser of normally distributed pictures of 8x8."""
  return toy.on_pixels()


@pytest.fixture(scope="session")
def latent_model() -> DiffusionModel:
  """The same on latents of 4x4, with an autoencoder of averages."""
  return toy.on_latents()


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
  """uint8 (20, 8, 8, 3): noisy copies of one smooth picture that reaches black and white."""
  y, x, c = np.mgrid[:8, :8, :3]
  smooth = 127.5 + 127.5 * np.sin(0.7 * x + 0.4 * y + c)
  noise = np.random.default_rng(1).normal(scale=12.0, size=(20, 8, 8, 3))
  return np.clip(np.round(smooth + noise), 0, 255).astype(np.uint8)


def random_params(shapes, seed: int = 0):
  """Parameters (NumPy) of these shapes for networks that pass signals on; nothing is zero."""
  generator = np.random.default_rng(seed)

  def draw(path, leaf):
    values = generator.normal(size=leaf.shape)
    name = path[-1].key
    if name == "kernel":
      values /= np.prod(leaf.shape[:-1]) ** 0.5
    elif name == "scale":
      values = 1.0 + 0.1 * values
    else:
      values *= 0.1
    return values.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def built_once() -> Iterator[None]:
  """A method of the same model and options is one object in all tests of a module.

  Jax traces, lowers and compiles a function once for as long as it is the same one; a method that
  is built again has new functions. Options are compared by their text.
  """
  from udp_jax import protections, threats

  made: dict[tuple[Any, ...], tuple[Any, Any]] = {}

  def share(build: Callable[..., Any]) -> Callable[..., Any]:
    def shared(name: str, model: Any, options: dict[str, Any]) -> Any:
      key = (build, name, id(model), repr(sorted(options.items())))
      if key not in made:
        # With the model: an identity is its own for as long as it lives.
        made[key] = build(name, model, options), model
      return made[key][0]

    return shared

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(protections, "build", share(protections.build))
    patch.setattr(threats, "build", share(threats.build))
    yield


@pytest.fixture(scope="module")
def photographs_once() -> Iterator[None]:
  """The built-in photographs are cut into crops once for all tests of a module."""
  from udp_jax.data import builtin

  cut = builtin._photograph_crops
  made: dict[tuple[Any, ...], list[tuple[int, np.ndarray]]] = {}

  def crops(photograph: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    key = (hash(photograph.tobytes()), photograph.shape, size)
    if key not in made:
      made[key] = cut(photograph, size)
    return [*made[key]]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(builtin, "_photograph_crops", crops)
    yield


PROMPTS = ("a photograph of a cat", "a painting of a dog by the sea", "the sea at night")


def _tiny_pipeline(*, in_channels: int = 4, prediction_type: str = "epsilon", **fields):
  """A `models.pipeline.Pipeline` of Stable Diffusion's architecture, small, with random weights.

  Pictures of 16x16, latents of 8x8x4, 2 levels of the VAE and one of the U-Net (what costs is
  tracing), 2 layers of text encoder; `fields` are the U-Net's.
  """
  from udp_jax.models import pipeline
  from udp_jax.models.clip_text import CLIPTextConfig
  from udp_jax.models.sd_unet import UNet2DConditionConfig
  from udp_jax.models.sd_vae import AutoencoderKLConfig
  from udp_jax.models.tokenizer import train_tokenizer

  tokenizer = train_tokenizer(PROMPTS, 520)
  configs = {
    "unet": UNet2DConditionConfig(
      **{
        "sample_size": 8,
        "in_channels": in_channels,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
      }
      | fields
    ),
    "vae": AutoencoderKLConfig(
      block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16
    ),
    "text_encoder": CLIPTextConfig(
      vocab_size=len(tokenizer),
      hidden_size=16,
      intermediate_size=32,
      num_hidden_layers=2,
      num_attention_heads=2,
      bos_token_id=tokenizer.token_id("<|startoftext|>"),
      eos_token_id=tokenizer.token_id("<|endoftext|>"),
    ),
  }
  # What Stable Diffusion's own folders say.
  scheduler = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": prediction_type,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
  }
  model = pipeline.build_model(configs, scheduler)
  params = random_params(jax.eval_shape(model.init, jax.random.key(0)))
  return pipeline.Pipeline(model, params, tokenizer, configs, scheduler)


def _tiny_sdxl(**fields):
  """A `Pipeline` of Stable Diffusion XL's architecture, small, with random weights.

  Pictures of 16x16, latents of 8x8x4, two levels of the U-Net whose second one attends with two
  blocks, and two text encoders; `fields` are the U-Net's.
  """
  from udp_jax.models import pipeline
  from udp_jax.models.sd_unet import UNet2DConditionConfig
  from udp_jax.models.tokenizer import train_tokenizer

  one = _tiny_pipeline()
  text = one.configs["text_encoder"]
  second = train_tokenizer(PROMPTS, 520)
  second.special["pad_token"] = "!"
  configs = {
    "unet": UNet2DConditionConfig(
      **{
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 28,
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
      }
      | fields
    ),
    # The factor of XL's own VAE.
    "vae": dataclasses.replace(one.configs["vae"], scaling_factor=0.13025),
    "text_encoder": dataclasses.replace(text, eos_token_id=2),
    "text_encoder_2": dataclasses.replace(
      text,
      hidden_size=12,
      num_hidden_layers=3,
      hidden_act="gelu",
      projection_dim=10,
      eos_token_id=2,
      pad_token_id=second.token_id("!"),
    ),
  }
  scheduler = one.scheduler | {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
  }
  model = pipeline.build_model(configs, scheduler)
  params = random_params(jax.eval_shape(model.init, jax.random.key(0)))
  return pipeline.Pipeline(model, params, one.tokenizer, configs, scheduler, second)


@pytest.fixture(scope="session")
def make_tiny_sdxl():
  """The function that makes tiny pipelines of Stable Diffusion XL."""
  return _tiny_sdxl


@pytest.fixture(scope="session")
def tiny_sdxl():
  """A tiny pipeline like Stable Diffusion XL 1.0."""
  return _tiny_sdxl()


@pytest.fixture(scope="session")
def make_tiny_pipeline():
  """The function that makes tiny pipelines: of 9 channels, for v_prediction, ..."""
  return _tiny_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline():
  """A tiny pipeline like Stable Diffusion 1.x."""
  return _tiny_pipeline()


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tiny_pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """`tiny_pipeline` as a Stable Diffusion folder. Copy it before changing anything."""
  from udp_jax.models import pipeline

  folder = tmp_path_factory.mktemp("pipeline") / "model"
  pipeline.save_pipeline_folder(folder, tiny_pipeline)
  return folder


@pytest.fixture(scope="session")
def clip_folder(tiny_pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A tiny CLIP as transformers writes it: pictures of 16x16, vectors of 6. Copy before changes."""
  from udp_jax.models import clip

  text = tiny_pipeline.configs["text_encoder"]
  vision = clip.CLIPVisionConfig(
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
  )
  config = clip.CLIPConfig(text, vision, 6)
  folder = tmp_path_factory.mktemp("clip") / "model"
  clip.save(folder, config, random_params(clip.shapes(config)), tiny_pipeline.tokenizer)
  return folder


@pytest.fixture(scope="session")
def tiny_clip(clip_folder: Path):
  """The `models.clip.CLIP` of `clip_folder`, with random weights."""
  from udp_jax.models import clip

  return clip.load(clip_folder)


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder that all processes of one call of pytest share."""
  own = tmp_path_factory.getbasetemp()
  return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def process_environment(pytestconfig: pytest.Config) -> dict[str, str]:
  """For processes that tests start: they compile in a hurry, and the same thing only once."""
  from tests import upkeep  # Not before pytest has loaded it as a plugin.

  cache = upkeep.cache_settings(pytestconfig)
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": upkeep.XLA_FLAGS,
    **{name.upper(): str(value) for name, value in cache.items()},
  }


@pytest.fixture(scope="session")
def eight_devices(process_environment: dict[str, str]) -> dict[str, str]:
  """`process_environment` for a process of eight CPU devices."""
  flags = process_environment["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  return process_environment | {"XLA_FLAGS": flags}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_module(process_environment: dict[str, str]) -> Iterator[Run]:
  """`run_module("launch.aot", "--help")`: `python -m launch.aot --help`, to its end."""
  from tests.forked import Forked

  server = Forked(process_environment, ROOT)
  yield lambda module, *words: server.run(module, words, timeout=600)
  server.close()


@pytest.fixture(scope="session")
def entry_point(run_module: Run) -> Run:
  """`entry_point("eudp", "--config=demo_pixels:smoke", ...)`: runs it as a user does."""
  return lambda name, *words: run_module(f"experiments.{name}", *words)


class Finished(NamedTuple):
  workdir: Path
  stdout: str
  stderr: str


@pytest.fixture(scope="session")
def smoke(entry_point: Run, common_folder: Path) -> Finished:
  """A finished smoke run of `experiments.eudp`. Copy its workdir before changing anything."""
  folder = common_folder / "smoke"
  said = folder / "stdout", folder / "stderr"
  with (common_folder / "smoke.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not said[-1].exists():
      done = entry_point("eudp", "--config", "demo_pixels:smoke", f"--workdir={folder / 'run'}")
      assert done.returncode == 0, done.stderr
      for file, text in zip(said, (done.stdout, done.stderr), strict=True):
        file.write_text(text)
  return Finished(folder / "run", *(file.read_text() for file in said))


class EntryPoint(NamedTuple):
  main: Callable[[list[str]], int | None]
  parse: Callable[..., list[str]]


@pytest.fixture
def load_entry_point(monkeypatch: pytest.MonkeyPatch):
  """`load_entry_point("experiments.eudp")`: its main and its parser of flags, in this process.

  Flags are defined as in a process of its own, and taken back after the test, or before the next
  entry point is loaded.
  """
  import runpy

  from absl import flags

  from experiments import _cli
  from udp_jax.commands import configs

  before = {*flags.FLAGS}

  def take_back() -> None:
    for name in {*flags.FLAGS} - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    configs.EXPERIMENT.clear()
    # Its flags are defined when it is imported.
    if sys.modules.pop("experiments._study", None) is not None:
      del sys.modules["experiments"]._study  # type: ignore[attr-defined]

  def load(module: str) -> EntryPoint:
    take_back()
    found: list[Callable[[list[str]], int | None]] = []
    monkeypatch.setattr(_cli, "run", lambda main, **_: found.append(main))
    runpy.run_module(module, run_name="__main__")
    return EntryPoint(found[0], lambda *words: _cli._parse(["program", *words]))

  yield load
  take_back()
