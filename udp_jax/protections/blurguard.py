"""BlurGuard: a perturbation that is blurred region by region until its spectrum is not noticed.

NeurIPS 2025, after attacks.py of jsu-kim/BlurGuard. With disjoint regions m_i of the
picture x, a variable p of the picture's size, and a Gaussian blur of sigma_i for each region,

  delta = sum_i m_i * blur(p, sigma_i), clipped to the budget
  1. sigma minimises max(max_r |log10 PS_r(x) - log10 PS_r(x + delta of random p)| - 0, 0)
  2. p minimises mean E(x + delta)^2, with sigma fixed

where PS_r is the power of all frequencies of radius r, in pixels of the spectrum, over all
channels. Published: radius 16/255 * 2 on [-1, 1], which is 16 of 255 levels; blurs of 33 taps from
sigma 1 on; 50 steps of Adam at 0.06 on log sigma, then 100 steps along the normalised gradient of p
from 0, of length 1.34 on [-1, 1] at first, shrinking linearly to 0.03, for 512x512; latents of
zero, Stable Diffusion 1.4. Their weight of 10 of the first term does nothing, as Adam's steps do
not depend on it and p has no gradient from it.

Differences: regions are superpixels (`ops.superpixels`), or those given in `segments`; theirs are a
few masks of Segment Anything. Radii are those of the frequencies; theirs are taken about the middle
of an unshifted spectrum, whose lowest frequencies lie in its corners. The length of a step is given
as a root mean square, so that it suits any size (1.34 is 0.193 levels). The steps of sigma, which
need no model, are made before the first round. Masks, limits and grey pictures hold for delta.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.objectives import latent
from udp_jax.ops import image, projections, superpixels
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, normal_each, stream
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Info, Protection, allowed, over_batches
from udp_jax.protections.options import Adaptive

# Taps on each side of the blurs' centre.
REACH = 16
# The last step of p as a share of the first: their steps fall from 1 to 1/100 over 150, of which p
# takes those from the 50th on.
_LAST = 0.01 / 0.67


class BlurGuardState(NamedTuple):
  """Perturbations, what is blurred, log sigmas (B, K), labels of regions, and a step count."""

  delta: jax.Array
  variable: jax.Array
  log_sigmas: jax.Array
  segments: jax.Array
  step: jax.Array


def blurguard(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  target: str = "zero",
  num_segments: int = 8,
  segments: ArrayLike | None = None,
  sigma_steps: int = 50,
  sigma_rate: float = 0.06,
  spectrum_budget: float = 0.0,
  decay_steps: int = 100,
  adaptive: Adaptive = Adaptive(),
) -> Protection:
  """Descends the distance of latents to a target's, through blurs chosen by the spectrum.

  Args:
    model: a latent model; only its VAE is attacked.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: root mean square of the first step's values on the [0, 1] scale
      (published: 0.193 / 255, 100 steps).
    target: "zero" (published), one of `targets.PATTERNS`, or the path of a picture.
    num_segments: most superpixels of a picture.
    segments: labels from 0 on in place of superpixels, (H, W) for all pictures or (N, H, W) by
      their numbers (`Batch.ids`); for data of the model's size, as tiles have other numbers.
    sigma_steps: steps of log sigma before the first round; 0 leaves all sigmas at 1 pixel.
    sigma_rate: learning rate of their Adam.
    spectrum_budget: change of log10 PS_r that needs no more blur.
    decay_steps: rounds over which the step shrinks linearly to a 67th, ideally the number of
      rounds; 0 keeps the step constant.
    adaptive: transforms, draws and consistency of the latents' distance.

  Raises:
    ConfigError: the model works on pixels, or a number, the labels or a transform cannot be used.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> blurguard(toy.on_latents(), radius=16 / 255, step_size=0.2 / 255).needs_params
  True
  """
  latent.require_latent(model, "blurguard")
  if num_segments < 1 or sigma_steps < 0:
    raise ConfigError(
      f"blurguard: num_segments is {num_segments} and sigma_steps {sigma_steps}: at least 1, and 0"
    )
  height, width = model.image_shape[:2]
  labels = None if segments is None else _checked(segments, height, width)
  count = int(np.prod(superpixels.grid(height, width, num_segments)))
  count = count if labels is None else int(labels.max()) + 1
  picture = targets.picture(target, model.image_shape)
  near = latent.latent_distance(model, picture, reduction="mean", sampled=True)
  objective = adapted(model, near, adaptive)
  budget, adam = constraints.linf(radius), optax.adam(sigma_rate)
  # A step of root mean square 1 has this length.
  unit = float(np.prod(model.image_shape)) ** 0.5

  def delta_of(
    variable: jax.Array, log_sigmas: jax.Array, own: jax.Array, batch: Batch, drawn: bool = False
  ) -> jax.Array:
    blurred = by_segment(variable, own, jnp.exp(log_sigmas))
    return allowed(budget.project(blurred, to_float(batch.images)), batch, drawn=drawn)

  def tuned(key: jax.Array, batch: Batch, own: jax.Array) -> jax.Array:
    images = to_float(batch.images)
    natural = jnp.log10(spectrum(images) + 1e-8)

    def seen(log_sigmas: jax.Array, drawn: jax.Array) -> jax.Array:
      moved = images + delta_of(drawn, log_sigmas, own, batch, drawn=True)
      apart = jnp.abs(natural - jnp.log10(spectrum(moved) + 1e-8))
      # The gradient of a maximum compares values that XLA may round in two ways, and is then NaN.
      worst = jnp.argmax(jax.lax.stop_gradient(apart), axis=1)
      most = jnp.take_along_axis(apart, worst[:, None], axis=1)
      return jnp.sum(jnp.maximum(most - spectrum_budget, 0.0))

    def step(carry, number):
      log_sigmas, opt_state = carry
      keys = example_keys(stream(key, "spectrum"), number, batch.ids)
      # Standard normal on [-1, 1].
      drawn = jnp.clip(0.5 * normal_each(keys, images.shape[1:]), -radius, radius)
      updates, opt_state = adam.update(jax.grad(seen)(log_sigmas, drawn), opt_state)
      return (optax.apply_updates(log_sigmas, updates), opt_state), None

    start = jnp.zeros((len(images), count))
    (log_sigmas, _), _ = jax.lax.scan(step, (start, adam.init(start)), jnp.arange(sigma_steps))
    return log_sigmas

  def init(key: jax.Array, batch: Batch, params: Params | None) -> BlurGuardState:
    del params
    images = to_float(batch.images)
    if labels is None:
      own = superpixels.superpixels(images, num_segments)
    else:
      own = jnp.asarray(labels)[jnp.asarray(batch.ids) % len(labels)]
    zero = jnp.zeros(images.shape)
    return BlurGuardState(zero, zero, tuned(key, batch, own), own, jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: BlurGuardState, batch: Batch, params: Params, phase=None):
    del phase  # One step has no parts.
    images, keys = to_float(batch.images), example_keys(key, state.step, batch.ids)

    def total(variable: jax.Array) -> tuple[jax.Array, jax.Array]:
      delta = delta_of(variable, state.log_sigmas, state.segments, batch)
      losses, _ = objective(params, images + delta, batch.cond, keys)
      return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.variable)
    done = jnp.minimum(state.step.astype(jnp.float32) / max(decay_steps, 1), 1.0)
    share = 1.0 - (1.0 - _LAST) * done if decay_steps else 1.0
    move = unit * step_size * share * projections.l2_normalised(gradients)
    variable = state.variable - move
    delta = delta_of(variable, state.log_sigmas, state.segments, batch)
    after = state._replace(delta=delta, variable=variable, step=state.step + 1)
    return after, Info(losses, jnp.zeros((0,)))

  return over_batches(Protection(init, update, needs_params=True), hold=model.hold)


def by_segment(
  variable: jax.Array, segments: jax.Array, sigmas: jax.Array, *, reach: int = REACH
) -> jax.Array:
  """Blurs pictures with a sigma for every region: sum_i (segments == i) * blur(variable, sigma_i).

  Args:
    variable: (B, H, W, C).
    segments: (B, H, W) int32, labels from 0 to K - 1.
    sigmas: (B, K), standard deviations in pixels.
    reach: taps on each side of the centre, as far as the picture can be mirrored.

  >>> spike = jnp.zeros((1, 8, 8, 1)).at[0, 4, 4].set(1.0)
  >>> halves = jnp.zeros((1, 8, 8), jnp.int32).at[:, :, 5:].set(1)
  >>> blurred = by_segment(100.0 * spike, halves, jnp.array([[0.01, 2.0]]))
  >>> blurred[0, 4, 3:7, 0].round().tolist()
  [0.0, 100.0, 4.0, 3.0]
  """
  height, width = variable.shape[1:3]

  @jax.checkpoint
  def add(total: jax.Array, region: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    number, sigma = region
    rows, columns = (image.blur_matrix(size, sigma, reach=reach) for size in (height, width))
    blurred = jnp.einsum("bij,bjkc->bikc", rows, variable, precision="highest")
    blurred = jnp.einsum("blk,bikc->bilc", columns, blurred, precision="highest")
    return total + jnp.where((segments == number)[..., None], blurred, 0.0), None

  regions = jnp.arange(sigmas.shape[1]), sigmas.T
  return jax.lax.scan(add, jnp.zeros_like(variable), regions)[0]


def spectrum(images: jax.Array) -> jax.Array:
  """Power of the frequencies of each radius, rounded to whole ones, summed over channels: (B, R).

  >>> flat = jnp.full((1, 8, 8, 3), 0.5)
  >>> spectrum(flat).round(1)[0, :3].tolist()  # 3 * (64 * 0.5)^2 at frequency 0.
  [3072.0, 0.0, 0.0]
  """
  height, width = images.shape[1:3]
  y, x = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
  radii = np.round(np.sqrt(np.square(y)[:, None] + np.square(x)[None])).astype(np.int32)
  count = int(radii.max()) + 1
  waves = jnp.fft.fft2(images, axes=(1, 2))
  power = jnp.sum(jnp.square(waves.real) + jnp.square(waves.imag), axis=-1)
  of_radius = lambda one: jax.ops.segment_sum(one, radii.reshape(-1), num_segments=count)
  return jax.vmap(of_radius)(power.reshape(len(images), -1))


def _checked(segments: ArrayLike, height: int, width: int) -> np.ndarray:
  """Labels as int32 (N, H, W)."""
  labels = np.asarray(segments)
  labels = labels[None] if labels.ndim == 2 else labels
  whole = np.issubdtype(labels.dtype, np.integer)
  if not whole or labels.ndim != 3 or labels.shape[1:] != (height, width) or labels.min() < 0:
    raise ConfigError(
      f"blurguard: segments are whole numbers from 0 on, ({height}, {width}) or (N, {height}, "
      f"{width}); got {labels.dtype} {np.shape(segments)}"
    )
  return labels.astype(np.int32)
