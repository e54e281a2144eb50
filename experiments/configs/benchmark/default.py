"""All races, and the sections without an opponent, in about 20 minutes on two cores.

python -m experiments.benchmark --config=default --workdir=runs/bench
Hardware: 2 CPU cores, 16 GB of memory. `make bench` installs the peers first. Expected numbers: the
table in the README.
"""

from experiments.configs import benchmark


def get_config(variant=None):
  """The benchmark that the README quotes; `variant` "smoke" takes seconds."""
  return benchmark.finish(benchmark.base("udp_jax against PyTorch diffusers"), variant)
