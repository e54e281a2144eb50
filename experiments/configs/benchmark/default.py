"""The races of udp_jax/benchmark/RESULTS.md, and sections without an opponent: 45 min on 2 cores.

python -m experiments.benchmark --config=default --workdir=runs/bench
Hardware: 2 CPU cores, 24 GB of memory. `make bench` installs the peers first. Expected numbers: the
table in that file.
"""

from experiments.configs import benchmark


def get_config(variant=None):
  """`full` without its slow parts; `variant` "smoke" takes seconds."""
  config = benchmark.base("udp_jax against PyTorch diffusers")
  latent, one = config.races.groups, ("float32",)
  config.races.groups = {
    "rounds": benchmark.group(("round",), ("ddpm_cifar10",), (16, 8), one),
    "narrow": benchmark.group(("round",), ("ddpm_cifar10",), (16,), ("bfloat16",)),
    "steps": benchmark.group(("min", "max", "joint"), ("ddpm_cifar10",), (16,), one),
    "small": benchmark.group(("round",), ("demo",), (16, 8), one),
    "latents": latent.latents,
    "full_size": latent.full_size,
    "purification": latent.purification,
  }
  # On a virtual machine, a call of three steps still spends a quarter of its time on memory.
  config.races.update({"scan_steps": (12,), "seconds": 0.0})
  config.peers.compile_only = "^round/ddpm_cifar10/b16/float32$"
  config.primitives.update({"seconds": 0.2, "select": "winograd|32x128_xla|group|attention"})
  config.cost.update({"batches": (), "resolutions": (), "num_batches": (16,)})
  config.impress.num_steps = 8
  config.scaling.devices = (1, 8)
  config.host.update({"models": ("ddpm_cifar10",), "in_one_dispatch": ()})
  return benchmark.finish(config, variant)
