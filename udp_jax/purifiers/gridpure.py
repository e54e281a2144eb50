"""GrIDPure (Zhao et al., CVPR 2024, arXiv:2312.00084): small DiffPure steps over a grid of windows.

Every iteration purifies overlapping windows of the model's size with few timesteps, averages them,
and mixes a little of the picture before the iteration in. One more window is made of the four
corners, which the grid covers once only.

Differences: the published code rounds the picture to 8 bits in every iteration and stops over a
misspelt argument; ours does neither, and pictures smaller than a window are extended by mirroring.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.purifiers import base, diffpure
from udp_jax.purifiers.base import Purifier

# A rectangle of a window and where it lies in the picture: (y, x in the window, y, x, side).
_Piece = tuple[int, int, int, int, int]


def gridpure(
  model: DiffusionModel | None,
  *,
  timestep: int = 10,
  num_iterations: int = 20,
  mix: float = 0.1,
  stride: int = 0,
  variance: str = "fixed_small",
  cond: Cond = None,
) -> Purifier:
  """Purifies pictures of any size with a model of square windows.

  Args:
    model: a diffusion model; the paper's is for 256x256.
    timestep: of each small purification, as in `diffpure`.
    num_iterations: how many.
    mix: the paper's gamma: x <- (1 - mix) * purified + mix * x.
    stride: between windows, in pixels; 0 for half a window, the paper's 128 of 256.
    variance: see `diffpure`.
    cond: see `diffpure`.

  Raises:
    ConfigError: options out of range, or a model whose pictures are not square with an even side.
  """
  model = base.need_model(model, "gridpure")
  diffpure.check(model, "gridpure", timestep, variance)
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

      # One window of all pictures at a time: the memory of a batch, not of a grid of them.
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
  """The windows of a picture, each as the pieces that it is put together from.

  Windows of the grid are one piece each; the last of a row or column ends with the picture. Where
  there are several along both axes, one more is made of the four corners.
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
