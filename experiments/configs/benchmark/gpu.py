"""Ours against PyTorch on one NVIDIA GPU of 80 GB, in the order of their worth: 12 to 15 minutes.

python -m experiments.benchmark --config=gpu --workdir=runs/gpu --peer_python=PATH
PATH: an interpreter with PyTorch for CUDA and diffusers. Hardware: an H100; with less memory, fewer
races (--only=cifar). --seconds=355 leaves out what does not fit. Expected numbers: none exists yet,
as nothing of this has run on a GPU.
"""

from experiments.configs import benchmark

# Stable Diffusion 1.5, whose sizes are the defaults of both networks.
_SD15 = {
  "image_size": 512,
  "prompt_length": 77,
  "unet": {"sample_size": 64, "cross_attention_dim": 768},
  "vae": {"sample_size": 512},
}
_NOTICE = (
  "A call of ours and of PyTorch takes the same number of steps, and the host waits for the device "
  "after the last. MFU: FLOPs that PyTorch counts for the eager network, without gradients that "
  "nobody uses, over the time and the best matrix product; `FLOPs by` jax where no such peer took "
  "part. Device MiB: ours what the compiler says of the program, with all its works; PyTorch's the "
  "largest allocation during a step. Programs that an earlier race compiled are loaded: `cached`."
)
_SMOKE = ("cifar_ours", "cifar", "sd", "compile")


def get_config(variant=None):
  """All races; `variant` "smoke" takes the first ones, of tiny models in float32 on any device."""
  config = benchmark.base("udp_jax against PyTorch diffusers on a GPU")
  config.notice, config.backend, config.cache = _NOTICE, "gpu", True
  del config.models.demo
  config.latent_models = {"sd15": _SD15}
  config.matmul_size, config.copy_mib = 8192, 4096
  config.matmul_rates = (*benchmark.DTYPES, "float32/tf32", "float32/highest")
  config.performance.update({"frozen_dtype": "bfloat16", "vae_attention": "", "vae_slices": 1})
  # Only delta or LoRA factors are raced on latents.
  config.performance.frozen_parts = ("unet", "vae", "text_encoder")
  config.races.update({"scan_steps": (12,), "seconds": 4.0, "start_together": True, "mfu": True})
  config.peers.update({"several_steps": True, "compile_only": ""})
  config = benchmark.finish(config, variant)
  smoke = variant == "smoke"
  config.races.groups = _tiny_groups() if smoke else _groups()
  # As in `_groups`; a ConfigDict has no order of its own.
  config.races.order = _SMOKE if smoke else tuple(_groups())
  if smoke:
    config.backend, config.copy_mib = "", 16
    config.performance.frozen_dtype = "float32"
  # The other sections are about CPUs.
  config.primitives.dtypes = ()
  config.cost.model = ""
  config.scaling.devices = config.host.models = config.compile_time.models = ()
  return config


def _groups():
  """The races by name. Seconds are guesses for an H100 with 16 cores, but generous."""
  cifar, steps, one = "ddpm_cifar10", ("round", "max", "min"), ("round",)
  eager, wide = ("channels_last",), ("float32",)
  # Only the gradient of the pictures; LoRA factors need no Adam of 860 M parameters.
  max_step = {"phase": "max", "trains": "lora", "scan_steps": (6,), "peers": eager}
  buffers = "--xla_gpu_enable_command_buffer="
  return {
    # One program, whose parts are the steps. It has no peers, so that it is written at once.
    "cifar_ours": _race(steps, cifar, 128, (70, 5)),
    "cifar": _race(steps, cifar, 128, (15, 9), peers=("as_written", *eager)),
    "sd": _race(("max",), "sd15", 8, (105, 14), **max_step),
    "compile": _race(one, cifar, 128, (80, 8), peers=("compile",)),
    "tf32": _race(one, cifar, 128, (75, 10), dtypes=wide, precision="tf32", peers=eager),
    "remat": _race(("max",), "sd15", 4, (105, 10), remat=True, **max_step),
    "b256": _race(one, cifar, 256, (75, 15), peers=eager),
    # To be compared with `cifar_ours`, which has XLA's own choice.
    "no_command_buffers": _race(one, cifar, 128, (70, 5), xla_flags=buffers),
    "loops_as_command_buffers": _race(one, cifar, 128, (70, 5), xla_flags=f"{buffers}+WHILE"),
    "highest": _race(one, cifar, 128, (75, 15), dtypes=wide, precision="highest", peers=eager),
  }


def _race(works, model, batch, seconds, **options):
  """A group of races in bfloat16; seconds: (to prepare all, for each)."""
  # Every group has every option, so that the command line can set it.
  every = {"precision": "", "remat": False, "xla_flags": "", "phase": "", "trains": ""}
  every |= {"scan_steps": (), "peers": (), "dtypes": ("bfloat16",)}
  every |= dict(zip(("prepare_s", "race_s"), map(float, seconds))) | options
  return benchmark.group(works, (model,), (batch,), **every)


def _tiny_groups():
  tiny = {"ddpm_cifar10": "tiny", "sd15": "sd_tiny"}
  found = {name: _groups()[name] for name in _SMOKE}
  for group in found.values():
    group.update({"models": tuple(tiny[name] for name in group.models), "batches": (4,)})
    # CPUs compile float32 faster.
    group.update({"dtypes": ("float32",), "scan_steps": (2,), "prepare_s": 1.0, "race_s": 0.1})
  return found
