"""Only the round of the CIFAR-10 model: batch 16, float32, eager peers, two or three minutes.

python -m experiments.benchmark --config=quick --workdir=runs/quick_bench
Hardware: 2 CPU cores. Expected numbers: the rows of `default` for the same race.
"""

from experiments.configs import benchmark


def get_config(variant=None):
  """One race and the primitives; `variant` "smoke" takes seconds."""
  config = benchmark.base("udp_jax against PyTorch diffusers: one race")
  del config.models.demo
  one = benchmark.group(("round",), ("ddpm_cifar10",), (16,), ("float32",))
  config.races.groups = {"one": one}
  config.peers.torch = ("as_written", "channels_last")
  config.cost.model = ""
  config.scaling.devices = ()
  config.host.update({"models": (), "in_one_dispatch": ()})
  config.compile_time.models = ()
  return benchmark.finish(config, variant)
