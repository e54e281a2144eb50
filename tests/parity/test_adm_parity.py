"""ADM under guided-diffusion's names against a PyTorch network of our own writing, live.

guided-diffusion itself cannot be installed. The network below follows the paper's description
(arXiv:2105.05233, section 3 and appendix) and the names of the released state dicts; diffusers'
`UNet2DModel` with scale and shift is compared in test_unet_parity.py.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from udp_jax.models import adm, weights
from udp_jax.models.ddpm_unet import UNet2D

FLAGS = {
  "image_size": 16,
  "num_channels": 32,
  "num_res_blocks": 1,
  "channel_mult": "1,2,2",
  "attention_resolutions": "8",
  "num_head_channels": 16,
  "learn_sigma": True,
}


class Residual(nn.Module):
  def __init__(self, inputs, outputs, width, scale_shift, resample=None):
    super().__init__()
    self.scale_shift, self.resample = scale_shift, resample
    norm, conv = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
    self.in_layers = nn.Sequential(norm, nn.SiLU(), conv)
    time = nn.Linear(width, outputs * (1 + scale_shift))
    self.emb_layers = nn.Sequential(nn.SiLU(), time)
    conv = nn.Conv2d(outputs, outputs, 3, padding=1)
    self.out_layers = nn.Sequential(nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.0), conv)
    self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

  def resized(self, x):
    if self.resample == "up":
      return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    return nn.functional.avg_pool2d(x, 2) if self.resample == "down" else x

  def forward(self, x, emb):
    h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
    time = self.emb_layers(emb)[..., None, None]
    if self.scale_shift:
      scale, shift = time.chunk(2, 1)
      h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
    else:
      h = self.out_layers(h + time)
    return self.skip_connection(self.resized(x)) + h


class Attention(nn.Module):
  def __init__(self, channels, head, newer):
    super().__init__()
    self.head, self.newer = head, newer
    self.norm = nn.GroupNorm(32, channels)
    self.qkv = nn.Conv1d(channels, 3 * channels, 1)
    self.proj_out = nn.Conv1d(channels, channels, 1)

  def forward(self, x, emb):
    b, c, height, width = x.shape
    flat = x.reshape(b, c, -1)
    qkv, heads = self.qkv(self.norm(flat)), c // self.head
    if self.newer:
      q, k, v = qkv.reshape(b, 3, heads, self.head, -1).unbind(1)
    else:
      q, k, v = qkv.reshape(b, heads, 3, self.head, -1).unbind(2)
    shares = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(self.head), -1)
    out = torch.einsum("bhqk,bhck->bhcq", shares, v).reshape(b, c, -1)
    return (flat + self.proj_out(out)).reshape(b, c, height, width)


class Halving(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

  def forward(self, x, emb):
    return self.op(x)


class Doubling(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.conv = nn.Conv2d(channels, channels, 3, padding=1)

  def forward(self, x, emb):
    return self.conv(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
  def forward(self, x, emb):
    return super().forward(x)


class Network(nn.Module):
  def __init__(self, flags):
    super().__init__()
    scaled, by_resnet = flags["use_scale_shift_norm"], flags["resblock_updown"]
    head, newer = flags["num_head_channels"], flags["use_new_attention_order"]
    self.width = width = flags["num_channels"]
    multiples = [int(m) for m in flags["channel_mult"].split(",")]
    attended = {flags["image_size"] // int(n) for n in flags["attention_resolutions"].split(",")}
    self.time_embed = nn.Sequential(
      nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
    )
    blocks, skips, channels = [nn.ModuleList([First(3, width, 3, padding=1)])], [width], width

    def residual(inputs, outputs, resample=None):
      return Residual(inputs, outputs, 4 * width, scaled, resample)

    for level, multiple in enumerate(multiples):
      for _ in range(flags["num_res_blocks"]):
        parts = [residual(channels, multiple * width)]
        channels = multiple * width
        parts += [Attention(channels, head, newer)] if 2**level in attended else []
        blocks.append(nn.ModuleList(parts))
        skips.append(channels)
      if level < len(multiples) - 1:
        down = residual(channels, channels, "down") if by_resnet else Halving(channels)
        blocks.append(nn.ModuleList([down]))
        skips.append(channels)
    self.input_blocks = nn.ModuleList(blocks)
    self.middle_block = nn.ModuleList(
      [residual(channels, channels), Attention(channels, head, newer), residual(channels, channels)]
    )
    blocks = []
    for level, multiple in reversed(list(enumerate(multiples))):
      for layer in range(flags["num_res_blocks"] + 1):
        parts = [residual(channels + skips.pop(), multiple * width)]
        channels = multiple * width
        parts += [Attention(channels, head, newer)] if 2**level in attended else []
        if level and layer == flags["num_res_blocks"]:
          parts.append(residual(channels, channels, "up") if by_resnet else Doubling(channels))
        blocks.append(nn.ModuleList(parts))
    self.output_blocks = nn.ModuleList(blocks)
    last = nn.Conv2d(channels, 6 if flags["learn_sigma"] else 3, 3, padding=1)
    self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), last)

  def forward(self, x, timesteps):
    half = self.width // 2
    angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
    skips = []
    for block in self.input_blocks:
      for part in block:
        x = part(x, emb)
      skips.append(x)
    for part in self.middle_block:
      x = part(x, emb)
    for block in self.output_blocks:
      x = torch.cat([x, skips.pop()], 1)
      for part in block:
        x = part(x, emb)
    return self.out(x)


@pytest.mark.parametrize("by_resnet", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("newer", [False, True])
def test_the_network_under_its_names(by_resnet, scaled, newer):
  flags = FLAGS | {"resblock_updown": by_resnet, "use_scale_shift_norm": scaled}
  flags |= {"use_new_attention_order": newer}
  torch.manual_seed(0)
  network = Network(flags).eval()
  with torch.no_grad():
    for value in network.parameters():
      value.add_(0.05 * torch.randn_like(value))
  generator = np.random.default_rng(0)
  x_t = generator.normal(size=(2, 16, 16, 3)).astype(np.float32)
  timesteps = np.array([3, 700])
  with torch.no_grad():
    channels_first = torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy())
    expected = network(channels_first, torch.from_numpy(timesteps)).numpy().transpose(0, 2, 3, 1)
  config = adm.unet_config(flags)
  unet = UNet2D(config)
  shapes = jax.eval_shape(unet.init, jax.random.key(0), x_t, jnp.asarray(timesteps))["params"]
  tensors = {name: value.numpy() for name, value in network.state_dict().items()}
  params = weights.from_torch_names(adm.renamed(tensors, flags), shapes)
  output = jax.jit(unet.apply)({"params": params}, x_t, timesteps)
  assert output.shape == (2, 16, 16, 6)
  assert np.abs(np.asarray(output) - expected).max() < 1e-5 * np.abs(expected).max()
