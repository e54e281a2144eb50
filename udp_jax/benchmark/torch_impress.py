"""The PyTorch contestant in the purification race: IMPRESS with diffusers' `AutoencoderKL`.

It runs in the peers' environment, as a part of `torch_worker`.
Variants:
  as_written      one picture after the other, NCHW, as the published code goes through a folder.
  channels_last   the whole batch at once, channels_last memory. Nobody publishes this; it is the
                  peer's best form.
The distance is LPIPS on VGG16 with random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import time
from typing import Any

import diffusers
import serve
import torch
from torch import nn

VARIANTS = ("as_written", "channels_last")
_LEARNING_RATE, _FINAL_LEARNING_RATE, _ADAM_EPSILON = 0.01, 1e-5, 1e-5
_PERCEPTUAL_WEIGHT, _PERCEPTUAL_BUDGET, _NOISE_STD = 0.1, 0.1, 0.1
_VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Contestant:
  """Handlers of a race. Times are for one Adam step of the whole batch."""

  def prepare(
    self,
    works: list[str],
    *,
    unet: dict[str, Any],
    vae: dict[str, Any],
    image_size: int,
    batch: int,
    num_steps: int,
    dtype: str,
    variant: str,
  ) -> dict[str, Any]:
    """Builds the networks and runs once; the U-Net is not used."""
    del unet
    (work,) = works
    if variant not in VARIANTS or dtype != "float32":
      raise ValueError(f"purification is not raced as {variant!r} in {dtype}")
    torch.manual_seed(0)
    torch.set_num_threads(serve.cores())
    fields = {name: value for name, value in vae.items() if not name.startswith("_")}
    layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    vae_module: Any = diffusers.AutoencoderKL(**fields)
    self._vae = vae_module.eval().to(memory_format=layout)
    self._distance = _Lpips().eval().to(memory_format=layout)
    for network in (self._vae, self._distance):
      network.requires_grad_(False)
    self._num_steps = num_steps
    images = torch.rand(batch, 3, image_size, image_size) * 2 - 1
    at_once = batch if variant == "channels_last" else 1
    self._parts = [part.to(memory_format=layout) for part in images.split(at_once)]
    started = time.perf_counter()
    tflop = self._count() / num_steps
    return {
      "compile_s": 0.0,
      "warmup_s": time.perf_counter() - started,
      "compile_peak_rss_mib": serve.peak_rss_mib(),
      "tflop": {work: tflop},
    }

  def run(self, work: str) -> dict[str, Any]:
    """Runs once, timed."""
    del work  # There is only one work.
    started = time.perf_counter()
    self._purify()
    return {"seconds": (time.perf_counter() - started) / self._num_steps}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs once, untimed, and returns the peak memory."""
    del work
    return serve.measured(self._purify)

  def _purify(self) -> None:
    for protected in self._parts:
      purified = self._one(protected)
      if not torch.isfinite(purified).all():
        raise FloatingPointError("the purified pictures are not finite")

  def _one(self, protected: torch.Tensor) -> torch.Tensor:
    x = protected + _NOISE_STD * torch.randn_like(protected)
    x.requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=_LEARNING_RATE, eps=_ADAM_EPSILON)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
      optimizer, self._num_steps, eta_min=_FINAL_LEARNING_RATE
    )
    for _ in range(self._num_steps):
      restored = self._vae(x).sample
      inconsistency = (restored - x).square().mean((1, 2, 3))
      far = torch.clamp(self._distance(x, protected) - _PERCEPTUAL_BUDGET, min=0)
      optimizer.zero_grad()
      (inconsistency + _PERCEPTUAL_WEIGHT * far).sum().backward()
      optimizer.step()
      schedule.step()
      with torch.no_grad():
        x.clamp_(-1, 1)
    return x.detach()

  def _count(self) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
      self._purify()
    return counter.get_total_flops() / 1e12


class _Lpips(nn.Module):
  """LPIPS (arXiv:1801.03924) on VGG16's layers, random weights; (B,) for pictures in [-1, 1]."""

  def __init__(self) -> None:
    super().__init__()
    stages, heads, channels = [], [], 3
    for stage, (repeats, width) in enumerate(_VGG16):
      layers: list[nn.Module] = [nn.MaxPool2d(2)] if stage else []
      for _ in range(repeats):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
      stages.append(nn.Sequential(*layers))
      heads.append(nn.Conv2d(width, 1, 1, bias=False))
    self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
    self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
    self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

  def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = (x - self.shift) / self.scale, (y - self.shift) / self.scale
    total = torch.zeros(len(x))
    for stage, head in zip(self.stages, self.heads):
      x, y = stage(x), stage(y)
      difference = (_unit(x) - _unit(y)).square()
      total = total + head(difference).mean((1, 2, 3))
    return total


def _unit(features: torch.Tensor) -> torch.Tensor:
  norm = features.square().sum(1, keepdim=True).sqrt()
  return features / (norm + 1e-10)
