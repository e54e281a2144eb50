"""DiffusionGuard: raises the norm of what an inpainting model predicts at its first step.

After choi403/DiffusionGuard. The first step decides about the edit's layout: from pure noise z_T,
with the mask m and the picture outside of it,

  maximise E_{z_T, m} || noise_pred(z_T, t_first, m, E(picture outside of m)) ||_2

over masks m whose kept region is a smaller, random one within the region to protect. Published on
[-1, 1]: radius 16/255, steps 1/255, which are 8 and 0.5 of 255 levels, 800 of them, from the clean
picture; the first step of 4, the empty prompt, contours of strength 1.1 and smoothness 0.1, Stable
Diffusion for inpainting.

The region to protect is `Batch.mask` (the option `mask` of the commands), where alone delta is not
zero; else what the mask of `latent.InpaintCond` keeps; else the whole picture. Differences: they
move the points of the largest contour with OpenCV, at most 15 times, and return points that leave
the region to it; here a pixel stays in the region if it lies deeper than a smooth, random depth
(`ops.morphology.shrunk`), so that the strengths are alike in unit, not in distribution. A model
whose `cond` has no mask is attacked at the first step of `threats.inpaint` with such models: what
is kept is the noised picture, the rest noise. Prompts are the pictures' own (`prompt=""`).
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives.base import Objective, negate
from udp_jax.ops import morphology, samplers, schedules
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.protections import constraints
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

MASKS = ("contour_shrink", "single", "global")
# Fields of `Sampling` that this method uses.
SAMPLING = ("sample_steps",)


def diffusion_guard(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  masks: str = "contour_shrink",
  contour_strength: float = 1.1,
  contour_smoothness: float = 0.1,
  start: str = "zero",
  sampling: Annotated[Sampling, SAMPLING] = Sampling(sample_steps=4),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign-gradient ascent of the first predicted noise of an inpainting edit.

  Args:
    model: the attacked model; its U-Net has 9 channels if `Batch.cond` has a mask.
    radius: L-inf budget on the [0, 1] scale (published: 8 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 0.5 / 255, 800 steps).
    masks: what the edit keeps: "contour_shrink" (a random part of the region, drawn for every
      picture and step; published), "single" (the region), or "global" (the whole picture).
    contour_strength: largest depth of the random contour, in radii of the region.
    contour_smoothness: length over which that depth changes, in radii of the region; positive.
    start: the first delta, "zero", "uniform" or "sign".
    sampling: the number of steps, whose first one is attacked.
    adaptive: transforms, draws and consistency.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the kind of masks, the start or a transform is unknown, or a number cannot be used.

  >>> from udp_jax.models import toy
  >>> diffusion_guard(toy.on_latents(), radius=8 / 255, step_size=0.5 / 255).needs_params
  True
  """
  registry.only("diffusion_guard", sampling, SAMPLING)
  if masks not in MASKS:
    raise ConfigError(f"diffusion_guard: unknown masks {masks!r}; known: {', '.join(MASKS)}")
  if contour_strength < 0 or contour_smoothness <= 0:
    raise ConfigError(
      f"diffusion_guard: contour_strength is {contour_strength} and contour_smoothness "
      f"{contour_smoothness}: at least 0, and above 0"
    )
  contour = (contour_strength, contour_smoothness)
  objective = first_noise(model, sampling.sample_steps, masks=masks, contour=contour)
  objective = adapted(model, negate(objective), adaptive)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  return over_batches(
    pgd(objective, constraint, sign_descent(step_size), sees_batch=True), hold=model.hold
  )


def first_noise(
  model: DiffusionModel,
  num_steps: int,
  *,
  masks: str = "single",
  contour: tuple[float, float] = (1.1, 0.1),
) -> Objective:
  """Norm of the noise that is predicted at the first of `num_steps`; for `pgd(sees_batch=True)`.

  Args:
    model: the model that inpaints.
    num_steps: steps of the whole chain.
    masks: one of `MASKS`.
    contour: strength and smoothness of "contour_shrink".

  Raises:
    ConfigError: the number of steps does not fit the schedule.

  >>> from udp_jax.models import toy
  >>> import numpy as np
  >>> model, keys = toy.on_latents(), jax.random.split(jax.random.key(0), 2)
  >>> batch = Batch(np.zeros((2, 8, 8, 3), np.uint8), ids=np.arange(2), weight=np.ones(2))
  >>> params = model.init(jax.random.key(1))
  >>> first_noise(model, 4)(params, jnp.full((2, 8, 8, 3), 0.5), batch, keys)[0].shape
  (2,)
  """
  try:
    steps = samplers.spaced_timesteps(model.schedule.num_steps, num_steps, steps_offset=1)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  timestep = int(steps[0])

  def objective(params: Params, images: jax.Array, batch: Batch, keys: jax.Array):
    key_mask, key_noise, key_encode = split_each(keys, 3)
    cond: Any = batch.cond
    inpaints = isinstance(cond, dict) and "mask" in cond
    kept = jnp.ones(images.shape[:3], bool) if masks == "global" else region(batch)
    if masks == "contour_shrink":
      strength, smoothness = contour
      kept = morphology.shrunk(key_mask, kept, strength=strength, smoothness=smoothness)
    latents = model.encode(params, jnp.where(kept[..., None], images, 0.5), key_encode)
    noise = normal_each(key_noise, latents.shape[1:])
    # The nearest pixel, the upper left one of a cell, as in diffusers' pipeline.
    cell = images.shape[1] // latents.shape[1], images.shape[2] // latents.shape[2]
    small = kept[:, :: cell[0], :: cell[1], None]
    if inpaints:
      mask = 1.0 - small.astype(jnp.float32)
      x_t, cond = noise, {**cond, "mask": mask, "masked_latents": latents}
    else:
      x_t = jnp.where(small, schedules.add_noise(model.schedule, latents, noise, timestep), noise)
    prediction = model.apply(params, x_t, jnp.full(x_t.shape[:1], timestep), cond)
    noise_pred = schedules.predict_noise(model.schedule, x_t, prediction, timestep)
    return jnp.sqrt(jnp.sum(jnp.square(noise_pred), axis=tuple(range(1, noise_pred.ndim)))), {}

  return objective


def region(batch: Batch) -> jax.Array:
  """The region to protect, (B, H, W) boolean: of the mask, of `cond`, or the whole pictures.

  >>> import numpy as np
  >>> batch = Batch(np.zeros((1, 4, 4, 3), np.uint8), ids=np.arange(1), weight=np.ones(1))
  >>> told = batch._replace(cond={"mask": np.array([1.0, 0.0]).reshape(1, 1, 2, 1)})
  >>> int(region(batch).sum()), int(region(told).sum())
  (16, 8)
  """
  count, height, width = batch.images.shape[:3]
  if batch.mask is not None:
    return jnp.asarray(batch.mask)[..., 0].astype(bool)
  if isinstance(batch.cond, dict) and "mask" in batch.cond:
    mask = jnp.asarray(batch.cond["mask"])[..., 0]
    rows = jnp.repeat(mask, height // mask.shape[1], axis=1)
    return jnp.repeat(rows, width // mask.shape[2], axis=2) < 0.5
  return jnp.ones((count, height, width), bool)
