"""A round trip through an autoencoder: details that its latents cannot hold are lost.

The autoencoder is the attacked model's; `vae_trans` goes through another one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.purifiers import base
from udp_jax.purifiers.base import Purifier


def vae_roundtrip(model: DiffusionModel | None, *, num_passes: int = 1) -> Purifier:
  """Encodes (to the posterior's mean) and decodes; also known as "deglazing".

  Pictures whose sides are not multiples of the autoencoder's factor are extended by mirroring, and
  the result is cropped.

  Args:
    model: a latent diffusion model.
    num_passes: number of round trips.

  Raises:
    ConfigError: the model has no autoencoder.

  >>> from udp_jax.models import toy
  >>> method = vae_roundtrip(toy.on_latents())
  >>> method.apply({}, None, jnp.full((1, 8, 8, 3), 0.5)).mean().tolist()
  0.5
  """
  model, downscale = base.need_autoencoder(model, "vae_roundtrip")
  assert model.reconstruct is not None
  apply = round_trips(model.reconstruct, downscale, num_passes)
  return Purifier(base.model_params_only(model), apply, needs_model=True)


def round_trips(
  reconstruct: Callable[[Params, jax.Array], jax.Array], downscale: int, num_passes: int
) -> base.ApplyFn:
  """Returns `Purifier.apply` of round trips through an autoencoder.

  Args:
    reconstruct: (params, images (B, H, W, 3) in [0, 1]) -> reconstructed images.
    downscale: what the sides of its pictures are multiples of.
    num_passes: number of round trips.

  >>> apply = round_trips(lambda params, x: 0.5 * x, 4, num_passes=2)
  >>> apply({}, None, jnp.ones((1, 6, 5, 3)))[0, :, 0, 0].tolist()
  [0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
  """

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del keys

    def once(_: jax.Array, x: jax.Array) -> jax.Array:
      return jnp.clip(reconstruct(params, x), 0.0, 1.0)

    whole = base.mirrored_to_multiple(images, downscale)
    whole = jax.lax.fori_loop(0, num_passes, once, whole)
    return whole[:, : images.shape[1], : images.shape[2]]

  return apply
