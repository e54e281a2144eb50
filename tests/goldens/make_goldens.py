"""Writes the reference values in this folder from PyTorch diffusers, for tests that run without it.

Run it in the virtual environment of `make parity`, from the repository's root:

  .venv-parity/bin/python tests/goldens/make_goldens.py

The files change only if diffusers' numerics do; commit them together with
tests/parity/requirements.txt, which says the versions. They are:

  unet_cifar_like/      a saved DDPMPipeline (float32): single-head attention, no down padding, the
                        timestep embedding of google/ddpm-cifar10-32
  unet_defaults_fp16/   a saved UNet2DModel, diffusers' defaults for the rest, variant fp16, sharded
  unet.npz              input, timesteps, output, and gradients of sum(output * cotangent) for both
  cifar10_shapes.json   tensor name -> shape of google/ddpm-cifar10-32's architecture
  schedules.npz         alphas_cumprod of the noise schedules
  trajectories.npz      DDPM and DDIM sampling with a closed-form network and stored noise
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm

HERE = Path(__file__).parent

CIFAR10 = {
  "sample_size": 32,
  "block_out_channels": (128, 256, 256, 256),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": None,
  "downsample_padding": 0,
  "norm_eps": 1e-6,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
}
SMALL = {
  "sample_size": 16,
  "block_out_channels": (8, 16),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 4,
}
SMALL_CIFAR_LIKE = SMALL | {
  name: CIFAR10[name]
  for name in ("attention_head_dim", "downsample_padding", "norm_eps", "flip_sin_to_cos")
}
SMALL_CIFAR_LIKE["freq_shift"] = 1
# 16 channels on 16x16 maps are the least for which `ops.conv` takes Winograd's algorithm, and an
# epsilon this large shows at once where another one is used.
SMALL_DEFAULTS = SMALL | {"block_out_channels": (16, 16), "norm_eps": 1e-2}

# Whose gradients are kept: one of every kind of layer.
GRADIENTS = (
  "conv_in.weight",
  "time_embedding.linear_1.bias",
  "down_blocks.0.downsamplers.0.conv.bias",
  "up_blocks.0.resnets.0.conv_shortcut.weight",
  "down_blocks.1.resnets.0.norm1.weight",
  "down_blocks.1.attentions.0.to_q.weight",
  "up_blocks.0.upsamplers.0.conv.bias",
  "conv_norm_out.bias",
  "conv_out.weight",
)

NUM_SAMPLING_STEPS = 10
SCHEDULES = {
  "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
  "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
  "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def randomize(model: torch.nn.Module, seed: int) -> None:
  """Gives every parameter, norms and biases included, values far from any initialiser's.

  Rounded to float16, so that an fp16 file holds the very same model.
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      if value.ndim > 1:
        value.copy_(noise / value[0].numel() ** 0.5)
      else:
        value.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
      value.copy_(value.half().float())


def unet_values(model: UNet2DModel, seed: int) -> dict[str, np.ndarray]:
  """One forward and backward pass; arrays in (B, H, W, C), parameters' gradients as PyTorch has."""
  generator = torch.Generator().manual_seed(seed)
  x_t = torch.randn(2, 3, 16, 16, generator=generator, requires_grad=True)
  cotangent = torch.randn(2, 3, 16, 16, generator=generator)
  timesteps = torch.tensor([3, 871])
  output = model(x_t, timesteps).sample
  (output * cotangent).sum().backward()
  gradients = {
    f"gradient/{name}": value.grad for name, value in model.named_parameters() if name in GRADIENTS
  }
  maps = {"x_t": x_t, "cotangent": cotangent, "output": output, "gradient/x_t": x_t.grad}
  values = {name: value.detach().numpy().transpose(0, 2, 3, 1) for name, value in maps.items()}
  values |= {name: value.numpy() for name, value in gradients.items()}
  return values | {"timesteps": timesteps.numpy()}


def prediction(x_t: torch.Tensor, t: int) -> torch.Tensor:
  """The closed-form network of the trajectories: 1.5 tanh(x_t + t / 500 - 1)."""
  return 1.5 * torch.tanh(x_t + t / 500.0 - 1.0)


def trajectory(step: Callable, timesteps: torch.Tensor, x_t: torch.Tensor) -> np.ndarray:
  """Every state of a sampling loop, the first included: (steps + 1, B, H, W, C)."""
  states = [x_t]
  for i, t in enumerate(timesteps):
    states.append(step(i, int(t), states[-1]))
  return torch.stack(states).numpy()


def trajectories() -> dict[str, np.ndarray]:
  """DDPM and DDIM trajectories of every prediction type, with and without clipping."""
  generator = torch.Generator().manual_seed(5)
  shape = (2, 4, 4, 3)
  x_t = torch.randn(shape, generator=generator)
  noises = torch.randn((NUM_SAMPLING_STEPS, *shape), generator=generator)
  values = {"x_t": x_t.numpy(), "noises": noises.numpy()}
  for kind in ("epsilon", "v_prediction", "sample"):
    for clip in (False, True):
      options = SCHEDULES["linear"] | {"prediction_type": kind, "clip_sample": clip}
      ddpm, ddim = DDPMScheduler(**options), DDIMScheduler(**options)
      ddpm.set_timesteps(NUM_SAMPLING_STEPS)
      ddim.set_timesteps(NUM_SAMPLING_STEPS)
      values["timesteps"] = ddim.timesteps.numpy()

      def ddpm_step(i, t, x, ddpm=ddpm):
        scheduling_ddpm.randn_tensor = lambda *args, **kwargs: noises[i]
        return ddpm.step(prediction(x, t), t, x).prev_sample

      suffix = f"{kind}{'_clip' if clip else ''}"
      values[f"ddpm_{suffix}"] = trajectory(ddpm_step, ddpm.timesteps, x_t)
      for eta in (0, 1):

        def ddim_step(i, t, x, ddim=ddim, eta=eta):
          out = ddim.step(
            prediction(x, t), t, x, eta=eta, variance_noise=noises[i] if eta else None
          )
          return out.prev_sample

        values[f"ddim{eta}_{suffix}"] = trajectory(ddim_step, ddim.timesteps, x_t)
  return values


def main() -> None:
  """Writes every file."""
  for folder in ("unet_cifar_like", "unet_defaults_fp16"):
    shutil.rmtree(HERE / folder, ignore_errors=True)
  torch.manual_seed(0)
  cifar_like, defaults = UNet2DModel(**SMALL_CIFAR_LIKE), UNet2DModel(**SMALL_DEFAULTS)
  randomize(cifar_like, 1)
  randomize(defaults, 2)
  values = {}
  for name, model in (("unet_cifar_like", cifar_like), ("unet_defaults_fp16", defaults)):
    values |= {f"{name}/{key}": value for key, value in unet_values(model, 3).items()}
  np.savez_compressed(HERE / "unet.npz", **values)
  scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
  DDPMPipeline(cifar_like, scheduler).save_pretrained(HERE / "unet_cifar_like")
  defaults.half().save_pretrained(
    HERE / "unet_defaults_fp16", variant="fp16", max_shard_size="80KB"
  )

  with torch.device("meta"):
    shapes = {name: list(t.shape) for name, t in UNet2DModel(**CIFAR10).state_dict().items()}
  lines = ",\n".join(f"{json.dumps(name)}: {shape}" for name, shape in sorted(shapes.items()))
  (HERE / "cifar10_shapes.json").write_text(f"{{\n{lines}\n}}\n")

  np.savez_compressed(
    HERE / "schedules.npz",
    **{name: DDPMScheduler(**fields).alphas_cumprod.numpy() for name, fields in SCHEDULES.items()},
  )
  np.savez_compressed(HERE / "trajectories.npz", **trajectories())


if __name__ == "__main__":
  main()
