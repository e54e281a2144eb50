"""PID: pushes the encoder's mean and variance away from the clean picture's; no prompt is used.

PID, prompt-independent data protection, after PID.py of PKU-ML/Diffusion-PID-Protection. The VAE's
posterior of a picture x is N(mu(x), var(x)); published is the kind "add-log" of six,

  maximise mean (log var(x + delta) - log var(x))^2 + mean (mu(x + delta) - mu(x))^2

with unscaled latents, radius 12.75/255 on [0, 1], sign steps of 1/255, 1000 of them, from a uniform
start, against Stable Diffusion 1.5.

Differences: our latents are scaled by the model's factor. The logarithms do not change by that; the
means do, so that their published weight 1 is 1 / 0.18215^2 = 30.1 here. The last steps are saved
(theirs saves before every 25th step), and the start lies in [0, 1] as well as in the budget.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.objectives import latent
from udp_jax.objectives.base import Objective, negate
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.protections import constraints
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

KINDS = ("add-log", "add", "mean", "var", "KL", "latent_vector")


def pid(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  kind: str = "add-log",
  mean_weight: float = 30.1,
  start: str = "uniform",
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign-gradient ascent of the distance between two posteriors, clean and protected.

  Args:
    model: a latent model; only its VAE is attacked.
    radius: L-inf budget on the [0, 1] scale (published: 12.75 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 1 / 255, 1000 steps).
    kind: what is compared, by mean squares: "add-log" (published: means and log variances), "add"
      (means and standard deviations), "mean", "var" (standard deviations), "latent_vector" (a draw
      of each), or "KL", the divergence KL(clean || protected).
    mean_weight: weight of the means in "add-log", for scaled latents.
    start: the first delta, "zero", "uniform" or "sign". At "zero" nothing has a gradient but
      "latent_vector".
    adaptive: transforms, draws and consistency.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels or has no posterior, or the kind, the start or a
      transform is unknown.

  >>> from udp_jax.models import toy
  >>> pid(toy.on_latents(), radius=8 / 255, step_size=1 / 255).needs_params
  True
  """
  latent.require_latent(model, "pid")
  objective = adapted(model, negate(posterior_distance(model, kind, mean_weight)), adaptive)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  inner = pgd(objective, constraint, sign_descent(step_size), sees_batch=True)
  return over_batches(inner, hold=model.hold)


def posterior_distance(model: DiffusionModel, kind: str, mean_weight: float = 1.0) -> Objective:
  """Distance of a picture's posterior to the clean picture's; for `pgd(sees_batch=True)`.

  Args:
    model: a latent model.
    kind: one of `KINDS`.
    mean_weight: weight of the means in "add-log".

  Raises:
    ConfigError: the kind is unknown, or the model has no posterior.

  >>> import numpy as np
  >>> from udp_jax.models import toy
  >>> batch = Batch(np.zeros((2, 8, 8, 3), np.uint8), ids=np.arange(2), weight=np.ones(2))
  >>> distance = posterior_distance(toy.on_latents(), "mean")
  >>> distance({}, jnp.full((2, 8, 8, 3), 0.75), batch, None)[0].tolist()  # -1 and 0.5.
  [2.25, 2.25]
  """
  if kind not in KINDS:
    raise ConfigError(f"pid: unknown kind {kind!r}; known: {', '.join(KINDS)}")
  posterior = model.posterior
  if posterior is None:
    raise ConfigError("pid needs a model whose encoder has a mean and a variance")

  def objective(params: Params, images: jax.Array, batch: Batch, keys: jax.Array):
    mean, logvar = posterior(params, to_float(batch.images))
    moved_mean, moved_logvar = posterior(params, images)
    std, moved_std = jnp.exp(0.5 * logvar), jnp.exp(0.5 * moved_logvar)
    shift = jnp.square(moved_mean - mean)
    if kind == "add-log":
      each = jnp.square(moved_logvar - logvar) + mean_weight * shift
    elif kind == "add":
      each = jnp.square(moved_std - std) + shift
    elif kind == "mean":
      each = shift
    elif kind == "var":
      each = jnp.square(moved_std - std)
    elif kind == "KL":
      each = 0.5 * (moved_logvar - logvar - 1.0)
      each = each + 0.5 * (jnp.square(std) + shift) / jnp.square(moved_std)
    else:
      first, second = split_each(keys, 2)
      drawn = mean + std * normal_each(first, mean.shape[1:])
      moved_drawn = moved_mean + moved_std * normal_each(second, mean.shape[1:])
      each = jnp.square(moved_drawn - drawn)
    return each.mean(tuple(range(1, each.ndim))), {}

  return objective
