"""Objectives for protections that work through an encoder: latents, score distillation, samplers.

Latents come from `DiffusionModel.encode`, scaled by the model's scaling factor, so their variance
is about 1 for every VAE. Multiply distances that a paper states for unscaled latents by the factor
(norms) or its square; for sign steps of a single term this changes nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.objectives.base import Objective
from udp_jax.ops import samplers, schedules
from udp_jax.ops import timesteps as timesteps_lib
from udp_jax.ops.guidance import guided
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import normal_each, split_each

REDUCTIONS = ("norm", "sum", "mean")


def _reduce(difference: jax.Array, reduction: str) -> jax.Array:
  """(B, ...) -> (B,): un-squared Euclidean norm, sum of squares, or mean square."""
  axes = tuple(range(1, difference.ndim))
  if reduction == "mean":
    return jnp.mean(jnp.square(difference), axis=axes)
  squares = jnp.sum(jnp.square(difference), axis=axes)
  if reduction == "sum":
    return squares
  # The root has no gradient at 0; we use 0, the middle of its subgradients.
  return jnp.where(squares > 0.0, jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0)), 0.0)


def _check(reduction: str) -> None:
  if reduction not in REDUCTIONS:
    raise ConfigError(f"unknown reduction {reduction!r}; known: {', '.join(REDUCTIONS)}")


def latent_distance(
  model: DiffusionModel,
  target: np.ndarray | None,
  *,
  reduction: str = "norm",
  sampled: bool = False,
) -> Objective:
  """Distance of a picture's latents to those of a target, as in PhotoGuard, Mist and Glaze.

  Args:
    model: the model that encodes both.
    target: one picture (H, W, 3) in [0, 1] for all, or None for latents of zero.
    reduction: "norm" (un-squared Euclidean), "sum" (of squares) or "mean" (of squares).
    sampled: whether the picture's latents are drawn from the posterior, else its mean is used. The
      target's latents are always the mean.

  Raises:
    ConfigError: the reduction is unknown.

  >>> from udp_jax.models import toy
  >>> model, images = toy.on_latents(), jnp.full((2, 8, 8, 3), 0.75)
  >>> grey = latent_distance(model, np.full((8, 8, 3), 0.5), reduction="mean")
  >>> grey({}, images, None, None)[0].tolist()
  [0.25, 0.25]
  """
  _check(reduction)

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    del cond  # The encoder sees no text.
    latents = model.encode(params, images, keys if sampled else None)
    if target is not None:
      latents = latents - model.encode(params, jnp.asarray(target)[None], None)
    return _reduce(latents, reduction), {}

  return objective


def latent_distance_within(
  model: DiffusionModel, to: str, *, reduction: str = "norm", sampled: bool = False
) -> Objective:
  """Distance of a picture's latents to those of its own target; for `pgd(sees_batch=True)`.

  Args:
    model: the model that encodes both.
    to: "clean", the picture before protection (`negate` it to move away), or "reference",
      `Batch.reference`, such as the picture in another style.
    reduction: "norm" (un-squared Euclidean), "sum" (of squares) or "mean" (of squares).
    sampled: whether the picture's latents are drawn from the posterior, else its mean is used.

  Raises:
    ConfigError: the reduction or `to` is unknown; during tracing, the data have no reference.

  >>> from udp_jax.models import toy
  >>> model, images = toy.on_latents(), jnp.full((2, 8, 8, 3), 0.75)
  >>> clean = np.zeros((2, 8, 8, 3), np.uint8)
  >>> batch = Batch(clean, ids=np.arange(2), weight=np.ones(2))
  >>> away = latent_distance_within(model, "clean", reduction="mean")
  >>> away({}, images, batch, None)[0].tolist()
  [2.25, 2.25]
  """
  _check(reduction)
  if to not in ("clean", "reference"):
    raise ConfigError(f"a distance to {to!r} is not known; known: clean, reference")

  def objective(params: Params, images: jax.Array, batch: Batch, keys: jax.Array):
    own = batch.images if to == "clean" else batch.reference
    if own is None:
      raise ConfigError("target 'reference' needs reference pictures, one for each picture")
    latents = model.encode(params, images, keys if sampled else None)
    return _reduce(latents - model.encode(params, to_float(own), None), reduction), {}

  return objective


def consistency(model: DiffusionModel) -> Objective:
  """Mean of (VAE(x) - x)^2 with the posterior's mean, on [-1, 1]: IMPRESS's consistency term.

  Cao et al. 2023 (arXiv:2310.19248). It is small for clean pictures and larger for most protected
  ones; IMPRESS removes the difference.

  Raises:
    ConfigError: the model has no autoencoder.

  >>> from udp_jax.models import toy
  >>> model, images = toy.on_latents(), jnp.full((2, 8, 8, 3), 0.75)
  >>> consistency(model)({}, images, None, None)[0].tolist()  # Nothing of a flat picture is lost.
  [0.0, 0.0]
  """
  require_latent(model, "a consistency term")
  reconstruct = model.reconstruct
  assert reconstruct is not None  # Checked above.

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    del cond, keys  # Nothing is drawn.
    return _reduce(2.0 * (reconstruct(params, images) - images), "mean"), {}

  return objective


def seen(distance: PerceptualDistance, budget: float) -> Objective:
  """max(distance(x, clean x) - budget, 0), Glaze's penalty; for `pgd(sees_batch=True)`.

  Args:
    distance: from `models.perceptual`.
    budget: distance without penalty, on the distance's own scale.

  >>> apart = lambda params, x, y: jnp.abs(x - y).mean((1, 2, 3))
  >>> distance = PerceptualDistance("mean", "Mean", {}, apart, 1, "")
  >>> batch = Batch(np.zeros((2, 8, 8, 3), np.uint8), ids=np.arange(2), weight=np.ones(2))
  >>> seen(distance, 0.25)(None, jnp.full((2, 8, 8, 3), 0.5), batch, None)[0].tolist()
  [0.25, 0.25]
  """

  def objective(params: Params, images: jax.Array, batch: Batch, keys: jax.Array):
    del params, keys  # The distance has its own parameters and draws nothing.
    away = distance.apply(distance.params, images, to_float(batch.images))
    return jnp.maximum(away - budget, 0.0), {"perceptual": away}

  return objective


def sds(model: DiffusionModel, probs: ArrayLike) -> Objective:
  """The denoising loss with the gradient of score distillation: the U-Net is not differentiated.

  The gradient with respect to the pictures is J_encode^T (noise_pred - noise) (Xue et al. 2023,
  arXiv:2311.12832; after DreamFusion, arXiv:2209.14988): a backward pass through the encoder alone.
  The value is the denoising loss of the same draws, for inspection only; the gradient is not its
  gradient.

  Args:
    model: the attacked model.
    probs: distribution over timesteps, (T,).

  >>> from udp_jax.models import toy
  >>> model = toy.on_latents()
  >>> objective = sds(model, timesteps_lib.uniform(50))
  >>> params, keys = model.init(jax.random.key(1)), jax.random.split(jax.random.key(0), 2)
  >>> gradient = jax.grad(lambda images: objective(params, images, None, keys)[0].sum())
  >>> gradient(jnp.full((2, 8, 8, 3), 0.5)).shape
  (2, 8, 8, 3)
  """
  probs = jnp.asarray(probs)

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    # The same draws as in `objectives.denoising.denoising`.
    key_t, key_noise, key_encode, _ = split_each(keys, 4)
    x0 = model.encode(params, images, key_encode)
    timesteps = jax.vmap(lambda key: timesteps_lib.sample(key, probs))(key_t)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = schedules.add_noise(model.schedule, jax.lax.stop_gradient(x0), noise, timesteps)
    prediction = model.apply(params, x_t, timesteps, cond)
    noise_pred = schedules.predict_noise(model.schedule, x_t, prediction, timesteps)
    residual = jax.lax.stop_gradient(noise_pred - noise)
    linear = jnp.sum(residual * x0, axis=tuple(range(1, x0.ndim)))
    value = _reduce(residual, "mean")
    return value + (linear - jax.lax.stop_gradient(linear)), {"timesteps": timesteps}

  return objective


def through_sampler(
  model: DiffusionModel,
  target: np.ndarray,
  *,
  num_steps: int = 4,
  eta: float = 1.0,
  strength: float = 1.0,
  guidance_scale: float = 1.0,
  uncond_ids: Any = None,
) -> Objective:
  """|| edit(x) - target ||_2 on [-1, 1], where edit(x) is the result of a few DDIM steps.

  PhotoGuard's diffusion attack (Salman et al. 2023, arXiv:2302.06588). The gradient passes through
  all steps; each is recomputed for it (remat), so that memory is that of one step. `cond` with a
  "mask" (`latent.InpaintCond`; masked latents are made here) inpaints from pure noise with a U-Net
  of 9 channels; other conditioning edits by SDEdit. Every call draws new noise.

  Args:
    model: the model that edits and decodes.
    target: the picture that edits should become, (H, W, 3) in [0, 1].
    num_steps: denoising steps of the whole chain.
    eta: share of fresh noise in a DDIM step; 1 draws as much as DDPM.
    strength: share of the chain that SDEdit runs, in (0, 1].
    guidance_scale: strength of classifier-free guidance; it has no effect for an empty prompt.
    uncond_ids: (L,) token ids of the empty prompt, which guidance needs.

  Raises:
    ConfigError: steps or strength do not fit, or guidance has no empty prompt.

  >>> from udp_jax.models import toy
  >>> model, grey = toy.on_latents(), np.full((8, 8, 3), 0.5, np.float32)
  >>> objective = through_sampler(model, grey, num_steps=2)
  >>> params, keys = model.init(jax.random.key(1)), jax.random.split(jax.random.key(0), 1)
  >>> jax.eval_shape(objective, params, jnp.ones((1, 8, 8, 3)), None, keys)[0].shape
  (1,)
  """
  if guidance_scale != 1.0 and uncond_ids is None:
    raise ConfigError("guidance_scale other than 1 needs uncond_ids: the empty prompt's token ids")
  try:
    steps = samplers.spaced_timesteps(model.schedule.num_steps, num_steps, steps_offset=1)
    first = samplers.start_step(num_steps, strength)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  previous = steps - model.schedule.num_steps // num_steps

  def start(params: Params, images: jax.Array, cond: Cond, key_encode, key_noise):
    noise = normal_each(key_noise, model.shape)
    if not (isinstance(cond, dict) and "mask" in cond):
      x0 = model.encode(params, images, key_encode)
      return schedules.add_noise(model.schedule, x0, noise, int(steps[first])), cond, first
    rows = images.shape[1] // cond["mask"].shape[1]
    columns = images.shape[2] // cond["mask"].shape[2]
    mask = jnp.repeat(jnp.repeat(cond["mask"], rows, axis=1), columns, axis=2)
    hidden = jnp.where(mask > 0.5, 0.5, images)
    masked = model.encode(params, hidden, key_encode)
    return noise, {**cond, "masked_latents": masked}, 0

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_encode, key_noise, key_steps = split_each(keys, 3)
    x_t, cond, begin = start(params, images, cond, key_encode, key_noise)
    predict = _predictor(model, params, cond, len(images), guidance_scale, uncond_ids)

    @jax.checkpoint
    def step(x_t: jax.Array, at: tuple[jax.Array, jax.Array]):
      timestep, before = at
      fresh = jax.vmap(lambda key: jax.random.fold_in(key, timestep))(key_steps)
      x_t = samplers.ddim_step(
        model.schedule,
        predict(x_t, jnp.full(x_t.shape[:1], timestep)),
        x_t,
        timestep,
        before,
        noise=normal_each(fresh, x_t.shape[1:]),
        options=samplers.DDIM(eta, clip_sample=False, set_alpha_to_one=False),
      )
      return x_t, None

    at = jnp.asarray(steps[begin:]), jnp.asarray(previous[begin:])
    x0, _ = jax.lax.scan(step, x_t, at)
    made = model.decode(params, x0, False)
    return _reduce(2.0 * (made - jnp.asarray(target)[None]), "norm"), {}

  return objective


def _predictor(
  model: DiffusionModel, params: Params, cond: Cond, count: int, scale: float, uncond_ids: Any
):
  """Returns (x_t, timesteps) -> prediction; texts are embedded once, not at every step."""

  def embedded(given: Any) -> Any:
    if given is None or not jnp.issubdtype(jnp.result_type(given), jnp.integer):
      return given
    return model.embed(params, given) if model.embed else given

  text = cond["text"] if isinstance(cond, dict) else cond
  told = {k: v for k, v in cond.items() if k != "text"} if isinstance(cond, dict) else {}

  def denoise(x_t: jax.Array, at: jax.Array, text: Any) -> jax.Array:
    # Guidance doubles the batch, so inputs that do not depend on the text are doubled too.
    doubled = {k: jnp.concatenate([v] * (len(x_t) // count)) for k, v in told.items()}
    return model.apply(params, x_t, at, {"text": text, **doubled} if told else text)

  without = None
  if scale != 1.0:
    without = embedded(jnp.asarray(uncond_ids, jnp.int32)[None])
    without = jnp.broadcast_to(without, (count, *without.shape[1:]))
  return guided(denoise, embedded(text), without, scale=scale)


def require_latent(model: DiffusionModel, what: str) -> None:
  """Raises ConfigError for a pixel model, whose code is the picture itself.

  >>> from udp_jax.models import toy
  >>> require_latent(toy.on_pixels(), "mist")
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: mist needs a latent diffusion model: this one works on pixels
  """
  if model.reconstruct is None:
    raise ConfigError(f"{what} needs a latent diffusion model: this one works on pixels")
