"""Like default, with more repeats and `torch.compile` at every batch: an hour or more.

python -m experiments.benchmark --config=full --workdir=runs/full_bench
Hardware: 2 CPU cores, 24 GB of memory. Expected numbers: those of `default`, with less spread.
"""

from experiments.configs import benchmark


def get_config(variant=None):
  """Settings for numbers that will be quoted; `variant` "smoke" takes seconds."""
  config = benchmark.base("udp_jax against PyTorch diffusers, at length")
  config.races.update({"min_cycles": 9, "max_cycles": 25, "seconds": 60.0})
  config.peers.compile_only = "/(ddpm_cifar10|demo)/"
  config.primitives.update({"dtypes": ("float32", "bfloat16"), "seconds": 1.0})
  config.cost.update({"resolutions": (32, 64), "steps": (4, 16), "num_batches": (4, 16, 64)})
  config.host.in_one_dispatch = config.host.models
  config.compile_time.models = config.host.models
  return benchmark.finish(config, variant)
