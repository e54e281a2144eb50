"""Autoencoders alone, whatever their kind, for round trips through a model that nobody attacked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.models import pipeline, tiny_autoencoder
from udp_jax.models.base import Params
from udp_jax.ops.image import from_model_range, to_model_range


class Autoencoder(NamedTuple):
  """An autoencoder as a pure function.

  Attributes:
    params: its parameters.
    reconstruct: (params, images (B, H, W, 3) in [0, 1]) -> images decoded from the mean of their
      latents; H and W are multiples of `downscale`.
    downscale: pixels along a side of a latent.
  """

  params: Params
  reconstruct: Callable[[Params, jax.Array], jax.Array]
  downscale: int


def load(path: str | os.PathLike[str]) -> Autoencoder:
  """Reads an autoencoder; no pickle is ever opened.

  Args:
    path: a folder with the two files of a tiny autoencoder (`models.tiny_autoencoder`), each with
      "encoder" or "decoder" in its name; or the VAE of a Stable Diffusion model: its folder, that
      of the whole model, a safetensors file, a name on the Hub, or "tiny_ldm".

  Raises:
    MissingDataError: there is no such file or folder.
    BadDataError: a file is damaged or holds another network.
    ConfigError: the autoencoder is not supported.
  """
  folder = Path(path).expanduser()
  found = tiny_autoencoder.files_in(folder) if folder.is_dir() else None
  if found is not None:
    params = tiny_autoencoder.load(*found)
    return Autoencoder(params, tiny_autoencoder.reconstruct, tiny_autoencoder.downscale(params))
  vae, params = pipeline.load_vae(os.fspath(path))

  def reconstruct(params: Params, images: jax.Array) -> jax.Array:
    return from_model_range(jnp.asarray(vae.apply({"params": params}, to_model_range(images))))

  return Autoencoder(params, reconstruct, vae.config.downscale)
