"""A round trip through another model's autoencoder: VAE-Trans of arXiv:2603.13028 (2026).

Protections are made against one autoencoder. Through another one, which its owner did not attack,
pictures lose what its latents cannot hold, and the perturbation seldom moves them.
"""

from __future__ import annotations

import jax

from udp_jax.models import autoencoders
from udp_jax.models.autoencoders import Autoencoder
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.purifiers.base import Purifier
from udp_jax.purifiers.vae_roundtrip import round_trips


def vae_trans(
  model: DiffusionModel | None, *, autoencoder: str | Autoencoder, num_passes: int = 1
) -> Purifier:
  """Encodes (to the posterior's mean) and decodes by an autoencoder of its own.

  Pictures whose sides are not multiples of the autoencoder's factor are extended by mirroring, and
  the result is cropped.

  Args:
    model: unused: the attacked model's own autoencoder is that of `vae_roundtrip`.
    autoencoder: path of the autoencoder, as for `models.autoencoders.load`: a folder with a tiny
      autoencoder such as TAEF2, or the VAE of a Stable Diffusion model; or one that is loaded.
    num_passes: number of round trips.

  Raises:
    MissingDataError, BadDataError, ConfigError: the autoencoder cannot be loaded.

  >>> halved = Autoencoder({}, lambda params, x: 0.5 * x, 8)
  >>> method = vae_trans(None, autoencoder=halved)
  >>> method.apply({}, None, jax.numpy.ones((1, 9, 6, 3))).max().tolist()
  0.5
  """
  del model
  loaded = autoencoders.load(autoencoder) if isinstance(autoencoder, str) else autoencoder

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    del key, model_params
    return loaded.params

  return Purifier(init, round_trips(loaded.reconstruct, loaded.downscale, num_passes))
