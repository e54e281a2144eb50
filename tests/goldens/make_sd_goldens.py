"""Writes sd.npz in this folder from PyTorch diffusers and transformers, for tests without them.

Run it in the virtual environment of `make parity`, from the repository's root:

  .venv-parity/bin/python tests/goldens/make_sd_goldens.py

The file changes only if their numerics do. It holds, for the models of sd_models.py, outputs and
gradients; weights and inputs are made anew from there. Maps are (B, H, W, C).

  unet_inpainting/  output; gradients of sum(output * cotangent) for x_t, cond and some parameters
  text_<act>/       last_hidden_state
  vae/              mean, logvar, decoded; gradients of sum(mean) + sum(logvar) and of sum(decoded)
  latent_2/         the denoising loss of pictures, one number each, and its gradient for them:
                    VAE encoder (posterior drawn), schedule (v prediction), U-Net of 2.x
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import sd_models
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent

# Whose gradients are kept: one of every kind of layer.
GRADIENTS = (
  "conv_in.weight",
  "down_blocks.0.attentions.0.norm.weight",
  "down_blocks.0.attentions.0.proj_in.weight",
  "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
  "down_blocks.0.attentions.0.transformer_blocks.0.norm2.bias",
  "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
  "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias",
  "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
  "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2.weight",
  "up_blocks.1.attentions.1.proj_out.bias",
)


def nchw(array: np.ndarray) -> torch.Tensor:
  """(B, H, W, C) -> (B, C, H, W)."""
  return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
  """(B, C, H, W) -> (B, H, W, C)."""
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def load(model: torch.nn.Module, seed: str = "") -> torch.nn.Module:
  """Gives a model the weights of `sd_models.tensors`, in evaluation mode."""
  named = dict(model.named_parameters())
  with torch.no_grad():
    for name, value in sd_models.tensors({k: v.shape for k, v in named.items()}, seed).items():
      named[name].copy_(torch.from_numpy(value))
  return model.eval()


def unet(fields: Mapping) -> UNet2DConditionModel:
  """The U-Net of these fields with our weights."""
  return load(UNet2DConditionModel(**fields))


def text(fields: Mapping) -> CLIPTextModel:
  """The text encoder of these fields with our weights."""
  return load(CLIPTextModel(CLIPTextConfig(**fields)))


def vae(fields: Mapping) -> AutoencoderKL:
  """The autoencoder of these fields with our weights."""
  return load(AutoencoderKL(**fields))


def run_unet(model: UNet2DConditionModel, inputs: Mapping) -> dict[str, np.ndarray]:
  """Output and gradients of sum(output * cotangent)."""
  x_t, cond = nchw(inputs["x_t"]).requires_grad_(), torch.from_numpy(inputs["cond"])
  cond.requires_grad_()
  output = model(x_t, torch.from_numpy(inputs["timesteps"]), cond).sample
  (output * nchw(inputs["cotangent"])).sum().backward()
  values = {"output": nhwc(output), "gradient/x_t": nhwc(x_t.grad)}
  values["gradient/cond"] = cond.grad.numpy()
  for name, value in model.named_parameters():
    values[f"gradient/{name}"] = value.grad.numpy()
  return values


def run_vae(model: AutoencoderKL, images: np.ndarray) -> dict[str, np.ndarray]:
  """Moments of pictures in [-1, 1], the decoded mean, and gradients for both inputs."""
  pictures = nchw(images).requires_grad_()
  posterior = model.encode(pictures).latent_dist
  (posterior.mean.sum() + posterior.logvar.sum()).backward()
  latents = posterior.mean.detach().requires_grad_()
  decoded = model.decode(latents).sample
  decoded.sum().backward()
  values = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
  values |= {"gradient/images": pictures.grad, "gradient/latents": latents.grad}
  return {name: nhwc(value) for name, value in values.items()}


def run_latent(unet_model, vae_model, scheduler: DDPMScheduler, inputs) -> dict[str, np.ndarray]:
  """The denoising loss of each picture and its gradient for the pictures, as trainers write it."""
  images = nchw(inputs["images"]).requires_grad_()
  posterior = vae_model.encode(2.0 * images - 1.0).latent_dist
  latents = posterior.mean + posterior.std * nchw(inputs["posterior_noise"])
  latents = latents * vae_model.config.scaling_factor
  noise, timesteps = nchw(inputs["noise"]), torch.from_numpy(inputs["timesteps"])
  x_t = scheduler.add_noise(latents, noise, timesteps)
  target = noise
  if scheduler.config.prediction_type == "v_prediction":
    target = scheduler.get_velocity(latents, noise, timesteps)
  prediction = unet_model(x_t, timesteps, torch.from_numpy(inputs["cond"])).sample
  losses = (prediction - target).square().mean((1, 2, 3))
  losses.sum().backward()
  return {"losses": losses.detach().numpy(), "gradient/images": nhwc(images.grad)}


def main() -> None:
  """Writes the file."""
  values: dict[str, np.ndarray] = {}

  def keep(prefix: str, made: Mapping[str, np.ndarray]) -> None:
    values.update({f"{prefix}/{name}": np.float32(value) for name, value in made.items()})

  kept = {"output", "gradient/x_t", "gradient/cond", *(f"gradient/{name}" for name in GRADIENTS)}
  fields = sd_models.UNET_INPAINTING
  made = run_unet(unet(fields), sd_models.unet_inputs(fields))
  keep("unet_inpainting", {name: value for name, value in made.items() if name in kept})
  for act, fields in sd_models.TEXTS.items():
    with torch.no_grad():
      output = text(fields)(torch.from_numpy(sd_models.token_ids(fields))).last_hidden_state
    keep(f"text_{act}", {"last_hidden_state": output.numpy()})
  autoencoder = vae(sd_models.VAE)
  size = sd_models.VAE["sample_size"]
  keep("vae", run_vae(autoencoder, np.tanh(sd_models.draw("images", 2, size, size, 3))))
  fields = sd_models.UNET_2
  scheduler = DDPMScheduler(**sd_models.SCHEDULER, prediction_type="v_prediction")
  inputs = sd_models.latent_inputs(fields, sd_models.VAE)
  keep("latent_2", run_latent(unet(fields), autoencoder, scheduler, inputs))
  np.savez_compressed(HERE / "sd.npz", **values)


if __name__ == "__main__":
  main()
