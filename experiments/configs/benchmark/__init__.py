"""Configs of `experiments.benchmark`, and what they are made of."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.eudp import demo


def base(title: str) -> ConfigDict:
  """Everything that a benchmark may set. Empty tuples leave a section out."""
  config = ConfigDict()
  config.title = title
  config.notice = ""
  config.models = ConfigDict()
  config.models.ddpm_cifar10 = ConfigDict(common.DDPM_CIFAR10)
  config.models.demo = demo.get_config().model.unet
  config.models.demo.sample_size = demo.get_config().data.image_size
  config.performance = common.study("").performance

  # Of the product whose best rate is the machine's peak.
  config.matmul_size = 2048

  config.races = ConfigDict()
  config.races.works = ("round", "min", "max", "joint")
  config.races.batches = (16, 8)
  config.races.dtypes = ("float32", "bfloat16")
  # A second form of our round: so many train and perturb steps in scans, timed by the step.
  config.races.scan_steps = 3
  config.races.min_cycles, config.races.max_cycles = 3, 15
  config.races.seconds = 20.0
  config.races.pause = 0.05
  # For the longest compilation.
  config.races.timeout = 900.0

  config.peers = ConfigDict()
  config.peers.torch = ("as_written", "channels_last", "compile")
  # It compiles for minutes and wins nothing.
  config.peers.compile_batches = (16,)

  config.primitives = ConfigDict({"dtypes": ("float32",), "seconds": 0.3, "select": ""})
  # 0: that of the case.
  config.primitives.batch = 0
  config.cost = ConfigDict({"model": "demo", "batch": 16, "batches": (8, 16, 32)})
  config.cost.update({"resolutions": (32,), "steps": (4,), "num_batches": (4, 16)})
  config.scaling = ConfigDict({"model": "demo", "batch": 16, "devices": (1, 2, 4, 8)})
  config.host = ConfigDict({"models": ("ddpm_cifar10", "demo"), "batch": 16, "num_rounds": 8})
  config.host.in_one_dispatch = ("demo",)
  config.compile_time = ConfigDict({"models": ("ddpm_cifar10",), "batch": 16})
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies `:smoke`: a tiny model, no peers, every section in seconds, numbers without meaning."""
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    config.models = ConfigDict({"tiny": ConfigDict(common.TINY | {"add_attention": False})})
    config.matmul_size = 256
    config.races.update({"works": ("round", "min", "max"), "batches": (4,), "seconds": 0.0})
    config.races.update({"dtypes": ("float32",), "scan_steps": 1, "min_cycles": 2})
    config.peers.update({"torch": (), "compile_batches": ()})
    config.primitives.update({"dtypes": ("float32",), "seconds": 0.0, "batch": 2})
    config.primitives.select = "3x3_16x16x32_(direct|winograd)|group_norm"
    config.cost.update({"model": "tiny", "batch": 4, "batches": (), "resolutions": ()})
    config.cost.update({"steps": (), "num_batches": (2,)})
    config.scaling.update({"model": "tiny", "batch": 4, "devices": (1, 2)})
    config.host.update({"models": ("tiny",), "in_one_dispatch": (), "batch": 4})
    config.compile_time.update({"models": ("tiny",), "batch": 4})
  return config
