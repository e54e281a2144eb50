"""Finds the prompt that fits a picture best, by the denoising loss of a diffusion model.

Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier" (arXiv:2303.16203): the
predicted class is the prompt under which the model predicts a picture's noise best, argmin over
prompts c of E_{t, noise} || noise - noise_pred(x_t, t, c) ||^2 (equation 5). All prompts share
timesteps and noises (section 3.3), and timesteps are evenly spaced (section 4). Prompts that are
far behind can be dropped early (algorithm 2): IMPRESS keeps 20, 10, 5 and 3 after 20, 50, 100 and
500 draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax.errors import ConfigError
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import schedules
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, normal_each, stream

_GOLDEN = 0.6180339887498949


class Prediction(NamedTuple):
  """The classifier's result.

  Attributes:
    prompt: (N,), index of the prompt that fits best.
    losses: (N, K), mean squared error of the predicted noise under each prompt, over that prompt's
      draws; inf for a prompt that was dropped before the last stage.
  """

  prompt: np.ndarray
  losses: np.ndarray


class DiffusionClassifier:
  """Classifies pictures by the prompts of a conditioned diffusion model.

  Pictures are encoded once (to the mean of a VAE's posterior). A stage is one compiled scan over
  its draws and the remaining prompts, with the memory of one batch.
  """

  def __init__(
    self,
    model: DiffusionModel,
    *,
    seed: int,
    draws: int,
    per_device_batch_size: int,
    mesh: Mesh,
    stages: Sequence[tuple[int, int]] = (),
  ):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      model: model that takes the prompts as `cond`.
      seed: seed of the noises.
      draws: total number of (timestep, noise) pairs per picture and prompt.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
      stages: (draws so far, prompts kept), both at least 1, with rising draws and falling prompts:
        after so many draws, only so many prompts remain. () gives all prompts all draws.

    Raises:
      ConfigError: draws is below 1 or above the model's number of timesteps, or stages are invalid.
    """
    self._model, self._size, self._mesh = model, per_device_batch_size, mesh
    self._stages = _checked(draws, stages, model.schedule.num_steps)
    root = stream(jax.random.key(seed), "diffusion-classifier")
    order = jnp.asarray(spread_timesteps(model.schedule.num_steps, draws))

    # Each stage traces this again: the shapes of `which` and `numbers` differ.
    @jax.jit
    def summed(params: Params, images: jax.Array, ids: jax.Array, which: jax.Array, *rest: Any):
      conds, numbers = rest
      with jax.default_matmul_precision("highest"):
        x0 = model.encode(params, to_float(images), None)
        held = model.hold(params)

        def draw(total: jax.Array, number: jax.Array):
          timestep = jnp.full(len(ids), order[number])
          noise = normal_each(example_keys(root, number, ids), x0.shape[1:])
          x_t = schedules.add_noise(model.schedule, x0, noise, timestep)

          def under(place: jax.Array) -> jax.Array:
            cond = jax.tree.map(lambda leaf: leaf[which[:, place]], conds)
            prediction = model.apply(held, x_t, timestep, cond)
            noise_pred = schedules.predict_noise(model.schedule, x_t, prediction, timestep)
            return jnp.mean(jnp.square(noise_pred - noise), axis=tuple(range(1, x0.ndim)))

          losses = jax.lax.map(under, jnp.arange(which.shape[1]))
          return total + losses.T, None

        return jax.lax.scan(draw, jnp.zeros(which.shape), numbers)[0]

    self._summed = summed

  def __call__(self, params: Params, images: np.ndarray, conds: np.ndarray) -> Prediction:
    """Classifies pictures.

    Args:
      params: the model's parameters.
      images: uint8 (N, H, W, 3).
      conds: (K, ...), embeddings or token ids of the prompts.

    Raises:
      ConfigError: there are fewer than two prompts.
    """
    count, num_prompts = len(images), len(conds)
    if num_prompts < 2:
      raise ConfigError(
        f"a diffusion classifier chooses between 2 and more prompts, not {num_prompts}"
      )
    ids = np.arange(count, dtype=np.int32)
    which = np.broadcast_to(np.arange(num_prompts, dtype=np.int32), (count, num_prompts))
    totals, done = np.zeros((count, num_prompts)), 0
    on_device = jax.device_put(conds)
    for until, kept in self._stages:
      numbers = jnp.arange(done, until)

      def of_batch(images: jax.Array, ids: jax.Array, which: jax.Array) -> jax.Array:
        # Called only below, before the next stage changes `numbers`.
        return self._summed(params, images, ids, which, on_device, numbers)  # noqa: B023

      found = over_pictures(
        of_batch, images, ids, which, per_device_batch_size=self._size, mesh=self._mesh
      )
      totals[ids[:, None], which] += found
      done = until
      if kept and kept < which.shape[1]:
        order = np.argsort(np.take_along_axis(totals, which, axis=1), axis=1, kind="stable")
        which = np.sort(np.take_along_axis(which, order[:, :kept], axis=1), axis=1)
    losses = np.full((count, num_prompts), np.inf)
    np.put_along_axis(losses, which, np.take_along_axis(totals, which, axis=1) / done, axis=1)
    return Prediction(losses.argmin(axis=1), losses)


def hits(prediction: Prediction, prompts: np.ndarray) -> np.ndarray:
  """Returns 1 for pictures assigned to their own prompt (N,), else 0; the mean is the accuracy."""
  return (prediction.prompt == prompts).astype(np.float64)


def spread_timesteps(num_steps: int, draws: int) -> np.ndarray:
  """Returns `draws` evenly spaced timesteps in [0, num_steps), in an order with even prefixes.

  The order follows multiples of the golden ratio, so that a stage with only the first few draws
  still covers the whole schedule.
  """
  ranks = np.argsort(np.argsort((np.arange(draws) + 0.5) * _GOLDEN % 1.0))
  return ((ranks + 0.5) * num_steps / draws).astype(np.int32)


def _checked(
  draws: int, stages: Sequence[tuple[int, int]], num_steps: int
) -> tuple[tuple[int, int], ...]:
  """Checks the stages and appends the last one, after which no prompt is dropped (0)."""
  if not 1 <= draws <= num_steps:
    raise ConfigError(f"a diffusion classifier draws 1 to {num_steps} timesteps, not {draws}")
  given = tuple((int(until), int(kept)) for until, kept in stages if until < draws)
  limits = [0, *(until for until, _ in given), draws]
  kept = [kept for _, kept in given]
  if sorted(set(limits)) != limits or sorted(set(kept), reverse=True) != kept or 0 in kept:
    raise ConfigError(
      f"stages of a diffusion classifier have rising draws and falling prompts, not {stages}"
    )
  return (*given, (draws, 0))
