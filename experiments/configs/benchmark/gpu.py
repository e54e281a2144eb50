"""Ours against PyTorch on one NVIDIA GPU of 80 GB, in the order of their worth: 12 to 15 minutes.

python -m experiments.benchmark --config=gpu --workdir=runs/gpu --peer_python=PATH
PATH: an interpreter with PyTorch for CUDA and diffusers. Hardware: an H100; with less memory, fewer
races (--only=cifar). --seconds=355 leaves out what does not fit. Expected numbers: none exists yet,
as nothing of this has run on a GPU.
"""

from experiments.configs import benchmark
from experiments.configs.benchmark import race


def get_config(variant=None):
  """All races; `variant` "smoke" takes the first ones, of tiny models in float32 on any device."""
  cifar, steps, one = "ddpm_cifar10", ("round", "max", "min"), ("round",)
  eager, wide = ("channels_last",), ("float32",)
  # Only the gradient of the pictures; LoRA factors need no Adam of 860 M parameters.
  max_step = {"phase": "max", "trains": "lora", "scan_steps": (6,), "peers": eager}
  buffers = "--xla_gpu_enable_command_buffer="
  # Seconds are guesses for an H100 with 16 cores, and generous but for `compile`: what follows it
  # takes longer, so that a try costs nothing else its time. All up to it fit into 355 s, with 25 s
  # for the libraries and the card's rates.
  groups = {
    # One program, whose parts are the steps. Ours alone come first, so that they are written.
    "cifar_ours": race(steps, cifar, 128, (70, 5)),
    # PyTorch as it is commonly written would take half a minute more, and no goal is about it.
    "cifar": race(steps, cifar, 128, (10, 6), peers=eager),
    "sd_ours": race(("max",), "sd15", 8, (90, 5), **max_step | {"peers": ()}),
    "sd": race(("max",), "sd15", 8, (25, 12), **max_step),
    "compile": race(one, cifar, 128, (60, 6), peers=("compile",)),
    "tf32": race(one, cifar, 128, (75, 10), dtypes=wide, precision="tf32", peers=eager),
    "remat": race(("max",), "sd15", 4, (105, 10), remat=True, **max_step),
    "b256": race(one, cifar, 256, (75, 15), peers=eager),
    # To be compared with `cifar_ours`, which has XLA's own choice.
    "no_command_buffers": race(one, cifar, 128, (70, 5), xla_flags=buffers),
    "loops_as_command_buffers": race(one, cifar, 128, (70, 5), xla_flags=f"{buffers}+WHILE"),
    "highest": race(one, cifar, 128, (75, 15), dtypes=wide, precision="highest", peers=eager),
  }
  return benchmark.on_gpu("udp_jax against PyTorch diffusers on a GPU", groups, variant)
