"""Configs of `experiments.benchmark`, and their building blocks."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.eudp import demo_pixels

DTYPES = ("float32", "bfloat16")
# Stable Diffusion's layout at a size for CPUs: a U-Net of 18 M parameters, an autoencoder of 14 M.
SD_SMALL = {
  "image_size": 128,
  "prompt_length": 77,
  "unet": {
    "sample_size": 32,
    "block_out_channels": (64, 128, 256),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
  },
  "vae": {"block_out_channels": (64, 128, 256), "layers_per_block": 2, "sample_size": 128},
}
# Stable Diffusion 1.5, whose sizes are the defaults of both networks.
_SD15 = {
  "image_size": 512,
  "prompt_length": 77,
  "unet": {"sample_size": 64, "cross_attention_dim": 768},
  "vae": {"sample_size": 512},
}
_SD_TINY = {
  "image_size": 32,
  "prompt_length": 4,
  "unet": {
    "sample_size": 16,
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
  },
  "vae": {
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
  },
}
_GPU_NOTICE = (
  "A call of ours and of PyTorch takes the same number of steps, and the host waits for the device "
  "after the last. In Stable Diffusion's max step every network is stored in bfloat16 on both "
  "sides; PyTorch runs it without autocast, as users have it after `pipe.to(torch.bfloat16)`. Ours "
  "carries LoRA factors there, as the library's methods do, and PyTorch none. In other races in "
  "bfloat16, PyTorch has float32 weights and autocast. MFU: FLOPs that PyTorch counts for the "
  "eager network, without gradients that nobody uses, over the time and the best matrix product; "
  "`FLOPs by` jax where no such peer took part. Device MiB: ours what the compiler says of the "
  "program, with all its works; PyTorch's the largest allocation during a step. Programs that an "
  "earlier race compiled are loaded: `cached`."
)


def group(
  works: tuple[str, ...],
  models: tuple[str, ...],
  batches: tuple[int, ...],
  dtypes: tuple[str, ...],
  **options: Any,
) -> ConfigDict:
  """Returns races: every work with every model, batch and dtype; options as in `plan.OPTIONS`."""
  fields = {"works": works, "models": models, "batches": batches, "dtypes": dtypes}
  return ConfigDict(fields | options)


def race(
  works: tuple[str, ...], model: str, batch: int, seconds: tuple[float, float], **options: Any
) -> ConfigDict:
  """Returns races of one model and batch, in bfloat16 unless the options have other `dtypes`.

  Args:
    works: what is raced.
    model: name of the model.
    batch: pictures in a batch.
    seconds: likely duration of preparing all contestants, and of each race.
    **options: as in `plan.OPTIONS`.
  """
  # Every group has every option, so that the command line can set it.
  fields: dict[str, Any] = {"precision": "", "remat": False, "xla_flags": "", "phase": ""}
  fields |= {"trains": "", "scan_steps": (), "peers": (), "dtypes": ("bfloat16",)}
  fields |= {"prepare_s": float(seconds[0]), "race_s": float(seconds[1])} | options
  return group(works, (model,), (batch,), **fields)


def base(title: str) -> ConfigDict:
  """Returns all settings of a benchmark. Empty tuples leave a section out."""
  config = ConfigDict()
  config.title = title
  config.notice = ""
  # Backend that the config is for, such as "gpu"; "" for any.
  config.backend = ""
  # Whether a program that was compiled once is loaded from WORKDIR/xla after that.
  config.cache = False
  config.models = ConfigDict()
  config.models.ddpm_cifar10 = ConfigDict(common.DDPM_CIFAR10)
  config.models.demo = demo_pixels.get_config().model.unet
  config.models.demo.sample_size = demo_pixels.get_config().data.image_size
  config.latent_models = ConfigDict({"sd_small": SD_SMALL, "sd15": _SD15})
  config.performance = common.study("").performance

  # Side of the square matrices whose product measures the peak rate of the machine.
  config.matmul_size = 2048
  # Kinds of products: a dtype, or float32 in a precision, such as "float32/tf32".
  config.matmul_rates = DTYPES
  # MiB that are read and written to measure the rate of a copy, half each; 0 for no copy.
  config.copy_mib = 0

  config.races = ConfigDict()
  # Each group races every one of its works with every one of its models, batches and dtypes.
  config.races.groups = ConfigDict()
  config.races.groups.pixels = group(
    ("round", "min", "max", "joint"), ("ddpm_cifar10", "demo"), (16, 8), DTYPES
  )
  config.races.groups.latents = group(("max",), ("sd_small",), (4,), DTYPES)
  # At full size, the other forms of PyTorch would need 4 GB more.
  config.races.groups.full_size = group(
    ("advdm",), ("sd15",), (1,), DTYPES, frozen=True, peers=("channels_last",)
  )
  config.races.groups.purification = group(("impress",), ("sd_small",), (8,), ("float32",))
  # Names of the groups in the order in which they are measured; () for pixel models first, races of
  # the same workers next to each other.
  config.races.order = ()
  # Whether all contestants of a race import their libraries at the same time.
  config.races.start_together = False
  # Whether to show the share of the peak rate that the usual form's FLOPs would be.
  config.races.mfu = False
  # Train and perturb steps that one call of our program scans over; times are per step. The entry
  # points run hundreds; a call of a single step pays for its scratch memory each time.
  config.races.scan_steps = (1, 3)
  config.races.min_cycles, config.races.max_cycles = 3, 15
  config.races.seconds = 20.0
  config.races.pause = 0.05
  # Seconds; long enough for the longest compilation.
  config.races.timeout = 900.0

  config.peers = ConfigDict()
  config.peers.torch = ("as_written", "channels_last", "compile")
  # Whether a timed call of a peer takes as many steps as ours, so that Python runs ahead of a GPU.
  config.peers.several_steps = False
  # Regular expression of the races with `compile` as a peer, which compiles for minutes.
  config.peers.compile_only = "(ddpm_cifar10|demo)/b16/float32"

  config.impress = ConfigDict({"image_size": 64, "num_steps": 4})

  config.primitives = ConfigDict({"dtypes": ("float32",), "seconds": 0.3, "select": ""})
  # 0 for the batch of the case.
  config.primitives.batch = 0
  config.cost = ConfigDict({"model": "demo", "batch": 16, "batches": (8, 16, 32)})
  config.cost.update({"resolutions": (32,), "steps": (4,), "num_batches": (4, 16)})
  config.scaling = ConfigDict({"model": "demo", "batch": 16, "devices": (1, 2, 4, 8)})
  config.host = ConfigDict({"models": ("ddpm_cifar10", "demo"), "batch": 16, "num_rounds": 8})
  config.host.in_one_dispatch = ("demo",)
  config.compile_time = ConfigDict({"models": ("ddpm_cifar10",), "batch": 16})
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies `:smoke`: a tiny model, no peers, seconds per section; the numbers mean nothing."""
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    config.models = ConfigDict({"tiny": ConfigDict(common.TINY | {"add_attention": False})})
    config.latent_models = ConfigDict({"sd_tiny": _SD_TINY})
    config.matmul_size = 256
    config.races.update({"seconds": 0.0, "scan_steps": (1,), "min_cycles": 2})
    one = (4,), ("float32",)
    config.races.groups = ConfigDict()
    config.races.groups.pixels = group(("round", "min", "max"), ("tiny",), *one)
    config.races.groups.latents = group(("max", "impress"), ("sd_tiny",), *one)
    config.races.groups.full_size = group(("advdm",), ("sd_tiny",), *one, frozen=True)
    config.impress.update({"image_size": 16, "num_steps": 2})
    config.peers.torch = ()
    config.primitives.update({"dtypes": ("float32",), "seconds": 0.0, "batch": 2})
    config.primitives.select = "3x3_16x16x32_(direct|winograd)|group_norm"
    config.cost.update({"model": "tiny", "batch": 4, "batches": (), "resolutions": ()})
    config.cost.update({"steps": (), "num_batches": (2,)})
    config.scaling.update({"model": "tiny", "batch": 4, "devices": (1, 2)})
    config.host.update({"models": ("tiny",), "in_one_dispatch": (), "batch": 4})
    config.compile_time.update({"models": ("tiny",), "batch": 4})
  return config


def on_gpu(title: str, groups: dict[str, ConfigDict], variant: str | None) -> ConfigDict:
  """Returns a benchmark of these races alone, in this order, on a GPU; of the first five as smoke.

  Both sides wait for the device after a call of several steps, not after each.
  """
  config = base(title)
  config.notice, config.backend, config.cache = _GPU_NOTICE, "gpu", True
  del config.models.demo
  config.latent_models = {"sd15": _SD15}
  config.matmul_size, config.copy_mib = 8192, 4096
  config.matmul_rates = (*DTYPES, "float32/tf32", "float32/highest")
  config.performance.update({"frozen_dtype": "bfloat16", "vae_attention": "", "vae_slices": 1})
  # Of latent models only delta or LoRA factors are trained.
  config.performance.frozen_parts = ("unet", "vae", "text_encoder")
  config.races.update({"scan_steps": (12,), "seconds": 4.0, "start_together": True, "mfu": True})
  config.peers.update({"several_steps": True, "compile_only": ""})
  config = finish(config, variant)
  if variant == "smoke":
    config.backend, config.copy_mib = "", 16
    config.performance.frozen_dtype = "float32"
    groups = dict(list(groups.items())[:5])
    names = {"ddpm_cifar10": "tiny", "sd15": "sd_tiny"}
    for each in groups.values():
      each.update({"models": tuple(names[name] for name in each.models), "batches": (4,)})
      # CPUs compile float32 faster.
      each.update({"dtypes": ("float32",), "scan_steps": (2,), "prepare_s": 1.0, "race_s": 0.1})
  config.races.groups = groups
  # A ConfigDict has no order of its own.
  config.races.order = tuple(groups)
  # The other sections are about CPUs.
  config.primitives.dtypes = ()
  config.cost.model = ""
  config.scaling.devices = config.host.models = config.compile_time.models = ()
  return config
