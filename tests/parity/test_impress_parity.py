"""IMPRESS against a transcription of its formula in PyTorch, on the same autoencoder, live.

The transcription is independent of ours: diffusers' `AutoencoderKL`, torch's Adam and cosine
schedule, NCHW in [-1, 1], one picture at a time as it was published. Start noise is given.
"""

from __future__ import annotations

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from make_goldens import randomize

from udp_jax import purifiers
from udp_jax.models import weights
from udp_jax.models.base import DiffusionModel
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.ops import schedules
from udp_jax.ops.image import from_model_range, to_model_range

FIELDS = {
  "block_out_channels": (8, 16),
  "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
  "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
  "layers_per_block": 1,
  "latent_channels": 4,
  "norm_num_groups": 4,
  "sample_size": 24,
}
COUNT, SIZE, STEPS = 3, 24, 20
SETTINGS = {
  "num_steps": STEPS,
  "learning_rate": 0.01,
  "perceptual_weight": 0.1,
  "perceptual_budget": 0.05,
  "noise_std": 0.1,
  "scale_epsilon": False,
}


@pytest.fixture(scope="module")
def theirs():
  vae = diffusers.AutoencoderKL(**FIELDS).eval()
  randomize(vae, 0)
  for parameter in vae.parameters():
    parameter.requires_grad_(False)
  return vae


@pytest.fixture(scope="module")
def ours(theirs):
  vae = AutoencoderKL(AutoencoderKLConfig.from_dict(dict(theirs.config)))
  template = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
  params = jax.tree.map(jnp.asarray, weights.from_torch_names(tensors, template))

  def reconstruct(params, images):
    return from_model_range(vae.apply({"params": params}, to_model_range(images)))

  def unused(*arguments):
    raise AssertionError("IMPRESS uses the autoencoder alone")

  shapes = (SIZE // 2, SIZE // 2, 4), (SIZE, SIZE, 3)
  schedule = schedules.linear(10)
  model = DiffusionModel(
    unused, unused, unused, unused, None, schedule, *shapes, lambda p: p, reconstruct
  )
  return model, params


def conv_distance():
  """Squared differences of two layers of fixed convolutions: (torch function, ours)."""
  generator = np.random.default_rng(5)
  kernels = [
    (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    for shape in ((6, 3, 3, 3), (8, 6, 3, 3))
  ]

  def in_torch(x, y):
    total = 0.0
    for kernel in kernels:
      x, y = (torch.tanh(torch.nn.functional.conv2d(v, torch.tensor(kernel))) for v in (x, y))
      total = total + ((x - y) ** 2).sum(1).mean()
    return 4.0 * total

  def in_jax(params, x, y):
    x, y = to_model_range(x), to_model_range(y)
    total = 0.0
    for kernel in params:
      layout = ("NHWC", "OIHW", "NHWC")
      x, y = (
        jnp.tanh(jax.lax.conv_general_dilated(v, kernel, (1, 1), "VALID", dimension_numbers=layout))
        for v in (x, y)
      )
      total = total + jnp.sum((x - y) ** 2, axis=-1).mean((1, 2))
    return 4.0 * total

  params = [jnp.asarray(kernel) for kernel in kernels]
  return in_torch, PerceptualDistance("conv", "conv", params, in_jax, 5, "fixed")


def transcription(vae, distance, image, start):
  """One picture, NHWC in [0, 1]; `start` in [-1, 1]. All iterates and losses."""
  protected = torch.tensor(2 * image - 1).permute(2, 0, 1)[None]
  x = torch.tensor(start).permute(2, 0, 1)[None].clone()
  optimizer = torch.optim.Adam([x], lr=SETTINGS["learning_rate"], eps=1e-5)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=1e-5)
  iterates, losses, distances = [], [], []
  for _ in range(STEPS):
    x.requires_grad_(True)
    restored = vae(x).sample
    far = distance(x, protected)
    loss = torch.nn.functional.mse_loss(restored, x)
    loss = loss + SETTINGS["perceptual_weight"] * torch.clamp(
      far - SETTINGS["perceptual_budget"], min=0
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    x.data = torch.clamp(x.data, -1, 1)
    iterates.append(x.detach()[0].permute(1, 2, 0).numpy().copy())
    losses.append(float(loss))
    distances.append(float(far))
  return np.stack(iterates), np.array(losses), np.array(distances)


def test_first_twenty_iterates(theirs, ours):
  model, vae_params = ours
  in_torch, distance = conv_distance()
  generator = np.random.default_rng(1)
  y, x, c = np.mgrid[:SIZE, :SIZE, :3] / SIZE
  waves = [np.sin(9 * (n + 1) * x + 5 * y + c) for n in range(COUNT)]
  images = np.clip(0.5 + 0.4 * np.stack(waves), 0, 1)
  images = np.clip(images + generator.normal(0, 0.03, images.shape), 0, 1).astype(np.float32)

  purifier = purifiers.build("impress", model, SETTINGS | {"perceptual": distance})
  params = purifier.init(jax.random.key(0), vae_params)
  keys = purifiers.picture_keys(jax.random.key(2), np.arange(COUNT))
  state = purifier.iteration.start(params, keys, jnp.asarray(images))
  start = np.asarray(state.x)
  assert np.std(start - (2 * images - 1)) == pytest.approx(0.1, rel=0.05)

  def one(state, _):
    state, losses = purifier.iteration.advance(params, jnp.asarray(images), state)
    return state, (state.x, losses)

  _, (iterates, losses) = jax.jit(lambda s: jax.lax.scan(one, s, None, length=STEPS))(state)
  for picture in range(COUNT):
    expected, their_losses, distances = transcription(
      theirs, in_torch, images[picture], start[picture]
    )
    # Both sides of the budget are seen, and the clamp is felt.
    np.testing.assert_allclose(losses[:, picture], their_losses, rtol=1e-4)
    np.testing.assert_allclose(iterates[:, picture], expected, atol=1e-4)
    assert np.abs(expected[-1] - start[picture]).mean() > 0.02
    assert (distances > SETTINGS["perceptual_budget"]).any()
