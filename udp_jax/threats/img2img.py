"""Image-to-image editing: SDEdit (Meng et al., arXiv:2108.01073), diffusers' img2img pipeline."""

from __future__ import annotations

from typing import Annotated

from udp_jax import registry
from udp_jax.models import editing
from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.threats.base import Edit
from udp_jax.threats.finetuning import SAMPLING


def img2img(
  model: DiffusionModel,
  *,
  strength: float = 0.5,
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Edit:
  """Adds noise to a picture part of the way, and denoises it towards the prompt.

  Args:
    model: the model that edits.
    strength: share of the noise that is added, in (0, 1]; 1 keeps almost nothing of the picture.
    sampling: how the picture is denoised; the empty prompt comes with each call.

  Raises:
    ConfigError: the sampler is unknown, or the strength or number of steps cannot be used.

  >>> from udp_jax.models import toy
  >>> img2img(toy.on_pixels(), strength=0.4, sampling=Sampling(sample_steps=10)).needs_masks
  False
  """
  registry.only("img2img", sampling, SAMPLING)
  return Edit(editing.img2img(model, sampling, strength))
