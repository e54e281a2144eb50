"""The PyTorch contestant: diffusers' networks trained and attacked as their users do it.

The network is `UNet2DModel` on pixels, or `UNet2DConditionModel` behind an `AutoencoderKL`. The
encoder is frozen in every variant, as in published code; its gradient reaches the pictures.

It runs by path in the peers' environment (`make bench`), so it imports only torch, diffusers and
modules of this folder that import no more.
Variants, each with as many threads as there are cores, or on a GPU:
  as_written      NCHW; `loss.backward()` in the max step too, which computes unused gradients of
                  the weights; Adam with default settings. Public code does this.
  channels_last   channels_last memory; the max step differentiates only delta, with frozen weights;
                  fused Adam. The best eager form.
  compile         the same under `torch.compile`.
bfloat16 is autocast around the forward pass, with float32 weights, in every variant. Networks that
no work trains may be stored narrower (`frozen_dtype`), but not as_written. If that is all of them,
there is no autocast, which would make every norm wide: inputs are cast once, as users have it after
`pipe.to(torch.bfloat16)`.

Lines that only a GPU reaches ask for `_GPU`; as on CPUs, cuDNN's convolutions are chosen by timing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import serve
import torch
import torch_impress

# Modules of this folder must not hide modules of other packages.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if str(Path(place or ".").resolve()) != _HERE]

VARIANTS = ("as_written", "channels_last", "compile")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GPU = "cuda"
# How PyTorch names precisions of float32 products: "highest" is float32, which is its default;
# "high" is TF32.
_PRECISIONS = {"": "highest", "highest": "highest", "tf32": "high", "bf16": "medium"}
# Products or copies between two readings of the clock on a GPU, which would else wait for the host.
_CALLS_ON_A_GPU = 4
_RADIUS, _STEP_SIZE = 16 / 255, 2 / 255
_LEARNING_RATE, _CLIP_NORM = 8e-4, 1.0


class _Settings(NamedTuple):
  """Settings of a contestant that not every race has.

  Attributes:
    vae: fields of the autoencoder's config; None for a model on pixels.
    image_size: side of a latent model's pictures, in pixels.
    prompt_length: tokens per prompt of a latent model.
    device: "cpu" or "cuda".
    precision: how float32 is computed on a GPU, as in `udp_jax.models.performance`.
    steps: steps in one timed call.
    frozen_dtype: dtype in which networks that no work trains are stored; "" for float32.
  """

  vae: dict[str, Any] | None = None
  image_size: int = 0
  prompt_length: int = 0
  device: str = "cpu"
  precision: str = ""
  steps: int = 1
  frozen_dtype: str = ""


class Contestant:
  """Handlers of a race."""

  _model: Any
  _forward: Any

  def prepare(
    self,
    works: list[str],
    *,
    unet: dict[str, Any],
    batch: int,
    dtype: str,
    variant: str,
    **settings: Any,
  ) -> dict[str, Any]:
    """Builds the model and runs each of `works` until it is warm.

    Args:
      works: the works to be run.
      unet: fields of the network's config.
      batch: pictures in a batch.
      dtype: dtype of the forward pass.
      variant: one of `VARIANTS`.
      **settings: fields of `_Settings`.
    """
    if variant not in VARIANTS:
      raise ValueError(f"unknown variant {variant!r}")
    torch.manual_seed(0)
    torch.set_num_threads(serve.cores())
    chosen = _Settings(**settings)
    self._device, self._steps = chosen.device, chosen.steps
    _use_precision(chosen.precision, chosen.device)
    torch.backends.cudnn.benchmark = chosen.device == _GPU
    self._lean = variant != "as_written"
    self._dtype = DTYPES[dtype]
    self._autocast = self._dtype is not torch.float32
    with torch.device(chosen.device):
      self._build(unet, batch, chosen)
    if self._lean and chosen.frozen_dtype:
      self._store(DTYPES[chosen.frozen_dtype], whole=set(works) == {"max"})
    # Counted on the eager model, which computes the same; this also warms up the eager variants.
    started = time.perf_counter()
    tflop = {work: self._count(work) for work in works}
    warm, compiled = time.perf_counter() - started, 0.0
    if variant == "compile":
      self._forward = torch.compile(self._model, dynamic=False)
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

  def _build(self, unet: dict[str, Any], batch: int, chosen: _Settings) -> None:
    layout = torch.channels_last if self._lean else torch.contiguous_format
    fields = {k: v for k, v in unet.items() if not k.startswith("_")}
    model: Any
    self._vae: Any = None
    if chosen.vae is None:
      model = diffusers.UNet2DModel(**fields)
      size, channels = model.config.sample_size, model.config.in_channels
      self._scheduler: Any = diffusers.DDPMScheduler(num_train_timesteps=1000)
      self._text: tuple[torch.Tensor, ...] = ()
    else:
      model = diffusers.UNet2DConditionModel(**fields)
      size, channels = chosen.image_size, chosen.vae["in_channels"]
      kind = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
      self._scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, **kind)
      fields = {k: v for k, v in chosen.vae.items() if not k.startswith("_")}
      self._vae = diffusers.AutoencoderKL(**fields)
      self._vae = self._vae.eval().to(memory_format=layout).requires_grad_(False)
      self._text = (torch.randn(batch, chosen.prompt_length, model.config.cross_attention_dim),)
    self._model = model.to(memory_format=layout)
    self._forward = self._model
    self._optimizer = torch.optim.Adam(
      model.parameters(), lr=_LEARNING_RATE, fused=True if self._lean else None
    )
    images = torch.rand(batch, channels, size, size)
    self._images = images.to(memory_format=layout)
    start = (torch.randint(0, 2, images.shape) * 2 - 1) * _RADIUS
    self._delta = start.to(memory_format=layout)

  def _store(self, dtype: torch.dtype, whole: bool) -> None:
    """Stores the frozen networks in a dtype: the encoder, and if `whole` the denoiser.

    If all of them are, the forward pass takes their dtype for its inputs, and no autocast.
    """
    for network in (self._vae, self._model if whole else None):
      if network is not None:
        network.to(dtype)
    if whole:
      self._dtype, self._autocast = dtype, False
      self._text = tuple(text.to(dtype) for text in self._text)

  def run(self, work: str) -> dict[str, Any]:
    """Runs `steps` steps of `work`, timed. The host waits for the device after the last only."""
    _wait(self._device)
    started = time.perf_counter()
    self._step(work, self._steps)
    _wait(self._device)
    return {"seconds": (time.perf_counter() - started) / self._steps}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs a step of `work`, untimed, and returns its peak memory."""
    if self._device != _GPU:
      return serve.measured(lambda: self._step(work))
    # Gradients of another work's weights are no part of this one.
    self._optimizer.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    found = serve.measured(lambda: self._step(work))
    return found | {"device_mib": torch.cuda.max_memory_allocated() / 2**20}

  def _step(self, work: str, count: int = 1) -> None:
    """Takes steps, and raises FloatingPointError if a loss of the last is not finite."""
    for _ in range(count):
      losses = []
      if work in ("min", "round"):
        losses.append(self._min_step())
      if work in ("max", "round"):
        losses.append(self._max_step())
      if work == "joint":
        losses.append(self._joint_step())
    # Reading a loss waits for the device.
    if not all(torch.isfinite(loss) for loss in losses):
      raise FloatingPointError("the loss is not finite")

  def _losses(self, images: torch.Tensor) -> torch.Tensor:
    """Returns the denoising loss (B,) of the pictures, each at its own timestep and noise."""
    x0 = 2 * images - 1
    narrow = torch.autocast(self._device, dtype=self._dtype, enabled=self._autocast)
    # Autocast casts by itself.
    stored = torch.float32 if self._autocast else self._dtype
    if self._vae is not None:
      with narrow:
        posterior = self._vae.encode(x0.to(stored)).latent_dist
      x0 = posterior.sample().float() * self._vae.config.scaling_factor
    noise = torch.randn_like(x0)
    timesteps = torch.randint(0, 1000, (len(x0),), device=self._device)
    x_t = self._scheduler.add_noise(x0, noise, timesteps)
    with narrow:
      prediction = self._forward(x_t.to(stored), timesteps, *self._text).sample
    return torch.nn.functional.mse_loss(prediction.float(), noise, reduction="none").mean((1, 2, 3))

  def _min_step(self) -> torch.Tensor:
    self._model.train()
    if self._lean:
      self._model.requires_grad_(True)
    self._optimizer.zero_grad()
    loss = self._losses(self._images + self._delta).mean()
    loss.backward()
    self._descend()
    return loss.detach()

  def _max_step(self) -> torch.Tensor:
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
    self._ascend(gradient)
    return loss.detach()

  def _joint_step(self) -> torch.Tensor:
    self._model.train()
    self._model.requires_grad_(True)
    self._optimizer.zero_grad()
    delta = self._delta.detach().requires_grad_()
    loss = self._losses(self._images + delta).mean()
    loss.backward()
    self._descend()
    self._ascend(delta.grad)
    return loss.detach()

  def _descend(self) -> None:
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
    self._optimizer.step()

  def _ascend(self, gradient: torch.Tensor) -> None:
    with torch.no_grad():
      delta = (self._delta + _STEP_SIZE * gradient.sign()).clamp(-_RADIUS, _RADIUS)
      self._delta = (self._images + delta).clamp(0, 1) - self._images

  def _count(self, work: str) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
      self._step(work)
    return counter.get_total_flops() / 1e12


def _wait(device: str) -> None:
  """Waits until the device has done all that it was asked for."""
  if device == _GPU:
    torch.cuda.synchronize()


def _use_precision(name: str, device: str) -> None:
  """Sets how a GPU computes float32: products by the name; convolutions in TF32 but in "highest".

  CPUs have float32 only, here as on our side.
  """
  if device == _GPU:
    torch.set_float32_matmul_precision(_PRECISIONS[name])
    torch.backends.cudnn.allow_tf32 = name != "highest"


def _several(function: Callable[[], Any], device: str) -> tuple[Callable[[], None], int]:
  """Returns a blocking call that takes `function` often enough for the device, and how often."""
  calls = _CALLS_ON_A_GPU if device == _GPU else 1

  def run() -> None:
    for _ in range(calls):
      function()
    _wait(device)

  return run, calls


def info(device: str = "cpu") -> dict[str, Any]:
  """Returns versions and threads; on a GPU also its name and the versions of CUDA and cuDNN."""
  torch.set_num_threads(serve.cores())
  found = {
    "version": torch.__version__,
    "diffusers": diffusers.__version__,
    "threads": torch.get_num_threads(),
  }
  if device == _GPU:
    libraries = {"torch CUDA": torch.version.cuda, "torch cuDNN": torch.backends.cudnn.version()}
    found["gpu"] = torch.cuda.get_device_name()
    found["libraries"] = {name: str(version) for name, version in libraries.items()}
  return found


def matmul(size: int, rates: Sequence[str] = tuple(DTYPES), device: str = "cpu") -> dict[str, Any]:
  """Returns the peak GFLOP/s of a matrix product for each of `rates`: DTYPE or DTYPE/PRECISION."""
  torch.set_num_threads(serve.cores())
  found = {}
  for name in rates:
    dtype, _, precision = name.partition("/")
    _use_precision(precision, device)
    a = torch.randn(size, size, device=device).to(DTYPES[dtype])
    multiply, products = _several(partial(torch.matmul, a, a), device)
    found[name] = serve.matmul_gflops(multiply, size, products=products)
  return {"gflops": found}


def copy(mib: int, device: str = "cpu") -> dict[str, Any]:
  """Returns the peak GB/s at which memory is read and written, half of `mib` MiB each."""
  moved = mib * 2**20
  source = torch.ones(moved // 8, device=device)
  target = torch.empty_like(source)
  run, calls = _several(lambda: target.copy_(source), device)
  return {"gbs": serve.copy_gbs(run, calls * moved)}


if __name__ == "__main__":
  handlers = {"info": info, "matmul": matmul, "copy": copy}
  serve.serve(handlers | serve.racing({"impress": torch_impress.Contestant}, Contestant))
