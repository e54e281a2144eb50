"""GrIDPure (Zhao et al., CVPR 2024, arXiv:2312.00084): small DiffPure steps over a grid of windows.

Each iteration purifies overlapping windows of the model's size with few timesteps, averages them,
and mixes in a little of the picture from before the iteration. One more window consists of the four
corners, which the grid covers only once.

Differences: the published code rounds the picture to 8 bits in every iteration and stops at a
misspelt argument; ours does neither, and mirrors pictures that are smaller than a window.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.purifiers import base, diffpure
from udp_jax.purifiers.base import Purifier

# A rectangle of a window and its place in the picture: (y, x in the window, y, x, side).
_Piece = tuple[int, int, int, int, int]


def gridpure(
  model: DiffusionModel | None,
  *,
  timestep: int = 10,
  num_iterations: int = 20,
  mix: float = 0.1,
  stride: int = 0,
  variance: str = "",
  cond: Cond = None,
) -> Purifier:
  """Purifies pictures of any size with a model for square windows.

  Args:
    model: a diffusion model; the paper's is guided-diffusion's for 256x256 (`models.adm`).
    timestep: number of steps of noise, and of denoising, of each small purification.
    num_iterations: number of purifications, one after the other.
    mix: the paper's gamma: x <- (1 - mix) * purified + mix * x.
    stride: distance between windows, in pixels; 0 for half a window, the paper's 128 of 256.
    variance: variance of the reverse steps, as for `diffpure`.
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.

  Raises:
    ConfigError: an option is out of range, or the model's pictures are not square with even side.

  >>> from udp_jax.models import toy
  >>> gridpure(toy.on_pixels(), timestep=2, num_iterations=1).needs_model
  True
  """
  model = base.need_model(model, "gridpure")
  variance = diffpure.check(model, "gridpure", timestep, variance)
  side, width = model.image_shape[:2]
  if side != width or side % 2:
    raise ConfigError(f"purifier gridpure needs square windows of an even side, not {side}x{width}")
  if not 0 <= stride <= side or not 0.0 <= mix < 1.0 or num_iterations < 1:
    raise ConfigError(
      f"purifier gridpure: stride must be 0 to {side}, mix in [0, 1) and num_iterations positive"
    )

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    height, width = images.shape[1:3]
    grown = ((0, 0), (0, max(0, side - height)), (0, max(0, side - width)), (0, 0))
    whole = jnp.pad(images, grown, mode="symmetric")
    windows = plan(whole.shape[1], whole.shape[2], side, stride or side // 2)
    held = model.hold(params)
    counts = np.zeros((1, *whole.shape[1:3], 1), np.float32)
    for pieces in windows:
      for _, _, y, x, size in pieces:
        counts[:, y : y + size, x : x + size] += 1.0

    def iteration(number: jax.Array, whole: jax.Array) -> jax.Array:
      stacked = jnp.stack([_cut(whole, pieces, side) for pieces in windows])

      def one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, window = at
        fold = number * len(windows) + index
        own = jax.vmap(lambda key: jax.random.fold_in(key, fold))(keys)
        return diffpure.noise_and_denoise(
          model, held, own, window, timestep=timestep, variance=variance, cond=cond
        )

      # One window of all pictures at a time, so memory grows with the batch and not with the grid.
      purified = jax.lax.map(one, (jnp.arange(len(windows)), stacked))
      total = jnp.zeros_like(whole)
      for pieces, window in zip(windows, purified):
        for from_y, from_x, y, x, size in pieces:
          part = window[:, from_y : from_y + size, from_x : from_x + size]
          total = total.at[:, y : y + size, x : x + size].add(part)
      return (1.0 - mix) * total / counts + mix * whole

    whole = jax.lax.fori_loop(0, num_iterations, iteration, whole)
    return jnp.clip(whole[:, :height, :width], 0.0, 1.0)

  return Purifier(base.model_params_only(model), apply, needs_model=True)


def plan(height: int, width: int, side: int, stride: int) -> list[list[_Piece]]:
  """Returns the windows of a picture, each as the pieces that it is assembled from.

  Windows of the grid are one piece each; the last of a row or column ends with the picture. If
  there are several along both axes, one more window consists of the four corners.

  >>> len(plan(12, 8, side=8, stride=4))  # Two windows, one below the other.
  2
  """
  tops, lefts = ([*range(0, n - side, stride), n - side] for n in (height, width))
  windows = [[(0, 0, top, left, side)] for top in tops for left in lefts]
  if len(tops) > 1 and len(lefts) > 1:
    half = side // 2
    bottom, right = height - half, width - half
    corners = [(0, 0, 0, 0), (0, half, 0, right), (half, 0, bottom, 0), (half, half, bottom, right)]
    windows.append([(*corner, half) for corner in corners])
  return windows


def _cut(whole: jax.Array, pieces: list[_Piece], side: int) -> jax.Array:
  window = jnp.zeros((whole.shape[0], side, side, whole.shape[3]), whole.dtype)
  for to_y, to_x, y, x, size in pieces:
    part = whole[:, y : y + size, x : x + size]
    window = window.at[:, to_y : to_y + size, to_x : to_x + size].set(part)
  return window
