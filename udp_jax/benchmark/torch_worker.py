"""The PyTorch contestant: diffusers' networks trained and attacked as their users do it.

The network is `UNet2DModel` on pixels, or `UNet2DConditionModel` behind an `AutoencoderKL`. The
encoder is frozen in every variant, as in published code; its gradient reaches the pictures.

It runs by path in the peers' environment (`make bench`), so it imports only torch, diffusers and
modules of this folder that import no more.
Variants, each with as many threads as there are cores:
  as_written      NCHW; `loss.backward()` in the max step too, which computes unused gradients of
                  the weights; Adam with default settings. Public code does this.
  channels_last   channels_last memory; the max step differentiates only delta, with frozen weights;
                  fused Adam. The best eager form.
  compile         the same under `torch.compile`.
bfloat16 is autocast around the forward pass, with float32 weights, in every variant.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import serve
import torch
import torch_impress

# Modules of this folder must not hide modules of other packages.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if str(Path(place or ".").resolve()) != _HERE]

VARIANTS = ("as_written", "channels_last", "compile")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_RADIUS, _STEP_SIZE = 16 / 255, 2 / 255
_LEARNING_RATE, _CLIP_NORM = 8e-4, 1.0


class Contestant:
  """Handlers of a race."""

  def prepare(
    self,
    works: list[str],
    *,
    unet: dict[str, Any],
    batch: int,
    dtype: str,
    variant: str,
    vae: dict[str, Any] | None = None,
    image_size: int = 0,
    prompt_length: int = 0,
  ) -> dict[str, Any]:
    """Builds the model and runs each of `works` until it is warm."""
    if variant not in VARIANTS:
      raise ValueError(f"unknown variant {variant!r}")
    torch.manual_seed(0)
    torch.set_num_threads(serve.cores())
    self._lean = variant != "as_written"
    self._dtype = DTYPES[dtype]
    layout = torch.channels_last if self._lean else torch.contiguous_format
    fields = {k: v for k, v in unet.items() if not k.startswith("_")}
    model: Any
    self._vae: Any = None
    if vae is None:
      model = diffusers.UNet2DModel(**fields)
      size, channels = model.config.sample_size, model.config.in_channels
      self._scheduler: Any = diffusers.DDPMScheduler(num_train_timesteps=1000)
      self._text: tuple[torch.Tensor, ...] = ()
    else:
      model = diffusers.UNet2DConditionModel(**fields)
      size, channels = image_size, vae["in_channels"]
      kind = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
      self._scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, **kind)
      fields = {k: v for k, v in vae.items() if not k.startswith("_")}
      self._vae = diffusers.AutoencoderKL(**fields)
      self._vae = self._vae.eval().to(memory_format=layout).requires_grad_(False)
      self._text = (torch.randn(batch, prompt_length, model.config.cross_attention_dim),)
    self._model = model.to(memory_format=layout)
    self._forward = self._model
    self._optimizer = torch.optim.Adam(
      model.parameters(), lr=_LEARNING_RATE, fused=True if self._lean else None
    )
    images = torch.rand(batch, channels, size, size)
    self._images = images.to(memory_format=layout)
    start = (torch.randint(0, 2, images.shape) * 2 - 1) * _RADIUS
    self._delta = start.to(memory_format=layout)
    # Counted on the eager model, which computes the same; this also warms up the eager variants.
    started = time.perf_counter()
    tflop = {work: self._count(work) for work in works}
    warm, compiled = time.perf_counter() - started, 0.0
    if variant == "compile":
      self._forward = torch.compile(model, dynamic=False)
      started = time.perf_counter()
      for work in works:
        self._step(work)
      compiled = time.perf_counter() - started
      started = time.perf_counter()
      for work in works:
        self._step(work)
      warm = time.perf_counter() - started
    return {
      "compile_s": compiled,
      "warmup_s": warm,
      "compile_peak_rss_mib": serve.peak_rss_mib(),
      "tflop": tflop,
    }

  def run(self, work: str) -> dict[str, Any]:
    """Runs `work` once, timed."""
    started = time.perf_counter()
    self._step(work)
    return {"seconds": time.perf_counter() - started}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs `work` once, untimed, and returns its peak memory."""
    return serve.measured(lambda: self._step(work))

  def _step(self, work: str) -> None:
    if work in ("min", "round"):
      self._min_step()
    if work in ("max", "round"):
      self._max_step()
    if work == "joint":
      self._joint_step()

  def _losses(self, images: torch.Tensor) -> torch.Tensor:
    """Returns the denoising loss (B,) of the pictures, each at its own timestep and noise."""
    x0 = 2 * images - 1
    narrow = torch.autocast("cpu", dtype=self._dtype, enabled=self._dtype is not torch.float32)
    if self._vae is not None:
      with narrow:
        posterior = self._vae.encode(x0).latent_dist
      x0 = posterior.sample().float() * self._vae.config.scaling_factor
    noise = torch.randn_like(x0)
    timesteps = torch.randint(0, 1000, (len(x0),))
    x_t = self._scheduler.add_noise(x0, noise, timesteps)
    with narrow:
      prediction = self._forward(x_t, timesteps, *self._text).sample
    return torch.nn.functional.mse_loss(prediction.float(), noise, reduction="none").mean((1, 2, 3))

  def _min_step(self) -> None:
    self._model.train()
    if self._lean:
      self._model.requires_grad_(True)
    self._optimizer.zero_grad()
    loss = self._losses(self._images + self._delta).mean()
    loss.backward()
    self._descend(loss)

  def _max_step(self) -> None:
    self._model.eval()
    delta = self._delta.detach().requires_grad_()
    if self._lean:
      self._model.requires_grad_(False)
      loss = self._losses(self._images + delta).sum()
      (gradient,) = torch.autograd.grad(loss, delta)
    else:
      self._optimizer.zero_grad()
      loss = self._losses(self._images + delta).sum()
      loss.backward()
      gradient = delta.grad
    self._ascend(gradient, loss)

  def _joint_step(self) -> None:
    self._model.train()
    self._model.requires_grad_(True)
    self._optimizer.zero_grad()
    delta = self._delta.detach().requires_grad_()
    loss = self._losses(self._images + delta).mean()
    loss.backward()
    self._descend(loss)
    self._ascend(delta.grad, loss)

  def _descend(self, loss: torch.Tensor) -> None:
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
    self._optimizer.step()
    _check(loss)

  def _ascend(self, gradient: torch.Tensor, loss: torch.Tensor) -> None:
    with torch.no_grad():
      delta = (self._delta + _STEP_SIZE * gradient.sign()).clamp(-_RADIUS, _RADIUS)
      self._delta = (self._images + delta).clamp(0, 1) - self._images
    _check(loss)

  def _count(self, work: str) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
      self._step(work)
    return counter.get_total_flops() / 1e12


def _check(loss: torch.Tensor) -> None:
  if not torch.isfinite(loss):
    raise FloatingPointError("the loss is not finite")


def info() -> dict[str, Any]:
  """Returns versions and threads."""
  torch.set_num_threads(serve.cores())
  return {
    "version": torch.__version__,
    "diffusers": diffusers.__version__,
    "threads": torch.get_num_threads(),
  }


def matmul(size: int) -> dict[str, Any]:
  """Returns the peak GFLOP/s of a matrix product, by dtype."""
  torch.set_num_threads(serve.cores())
  rates = {}
  for name, dtype in DTYPES.items():
    a = torch.randn(size, size).to(dtype)
    rates[name] = serve.matmul_gflops(lambda a=a: a @ a, size)
  return {"gflops": rates}


if __name__ == "__main__":
  handlers = {"info": info, "matmul": matmul}
  serve.serve(handlers | serve.racing({"impress": torch_impress.Contestant}, Contestant))
