"""Unlearnable diffusion perturbations in JAX: protections, purifiers, threats, metrics.

The functions that a notebook needs; pictures are arrays (N, H, W, 3) of uint8:

  import udp_jax

  model = udp_jax.load_model("tiny_ldm")                # or a folder as diffusers writes it
  protected = udp_jax.protect(clean, model, "eudp", radius_255=16)
  purified = udp_jax.purify(protected, "jpeg", quality=75)

`python -m experiments.protect` protects folders of pictures of any size, with checkpoints; `verify`
checks its results, or those of other programs. Importing this module imports nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import numpy as np

  from udp_jax.data.verify import VerifyReport
  from udp_jax.models.context import Model

__all__ = ["load_model", "protect", "purify", "verify"]


def load_model(path: str | os.PathLike, *, image_size: int = 0, dtype: str = "float32") -> Model:
  """Reads a diffusion model: Stable Diffusion 1.x, 2.x or XL, or a DDPM, in diffusers' layout.

  Args:
    path: folder of the model, or "tiny_ldm" for the small latent model of this package.
    image_size: side of the pictures in pixels, for a latent model; 0 for the model's own.
    dtype: data type of the networks' computation, "float32" or "bfloat16".

  Raises:
    ConfigError: the kind of model is unknown, or it cannot have this size.
    MissingDataError, BadDataError: the folder or a file in it is missing or damaged.

  >>> load_model("tiny_ldm").model.image_shape
  (64, 64, 3)
  """
  from ml_collections import ConfigDict

  from udp_jax.models import factory

  config = ConfigDict({"path": os.fspath(path), "image_size": image_size})
  return factory.open_model(config, {"dtype": dtype})


def protect(
  images: np.ndarray,
  model: Model,
  method: str = "eudp",
  *,
  radius_255: float = 16.0,
  num_rounds: int = 20,
  prompts: Sequence[str] | None = None,
  seed: int = 0,
  **options: Any,
) -> np.ndarray:
  """Protects pictures of the model's size.

  Args:
    images: (N, H, W, 3) uint8.
    model: the model to protect against, from `load_model`.
    method: a module of `udp_jax.protections`.
    radius_255: the largest change of any value, in 8-bit levels.
    num_rounds: updates of the method; a method that draws its noise once makes one update.
    prompts: a caption for each picture, for models with text; None for empty ones.
    seed: decides every draw.
    **options: further options of the method, flat, as configs spell them (`train_steps`, ...);
      `step_size_255` defaults to 2, `batch_size` to 16 pictures.

  Returns:
    (N, H, W, 3) uint8, at most `radius_255` levels from `images`; grey pictures stay grey.

  Raises:
    ConfigError: the method or an option is unknown, or pictures do not have the model's size.
    DivergedError: the perturbation is not finite.

  >>> import numpy as np
  >>> clean = np.full((2, 64, 64, 3), 128, np.uint8)
  >>> made = protect(clean, load_model("tiny_ldm"), "random_noise", radius_255=8)
  >>> int(np.abs(made.astype(int) - clean).max())
  8
  """
  import jax
  import numpy as np
  from ml_collections import ConfigDict

  from udp_jax import protections
  from udp_jax.data import batches
  from udp_jax.data.images import is_grey
  from udp_jax.errors import ConfigError
  from udp_jax.protections import constraints
  from udp_jax.stages.protect import build_protection
  from udp_jax.studies import rows

  wanted = " x ".join(str(n) for n in model.model.image_shape)
  _check_pictures(images, wanted)
  if images.shape[1:] != model.model.image_shape:
    raise ConfigError(f"images are {images.shape}: uint8 (N, {wanted}) are needed")
  if prompts is not None and len(prompts) != len(images):
    raise ConfigError(f"{len(prompts)} prompts for {len(images)} pictures")
  size = options.pop("batch_size", 16)
  if not isinstance(size, int) or size < 1:
    raise ConfigError(f"batch_size is {size!r}: it must be a whole number from 1")
  # What a study makes of the same settings.
  asked = ConfigDict({"radius_255": radius_255, "step_size_255": 2.0, "num_rounds": num_rounds})
  asked.protections, asked.model, asked.performance = ConfigDict(), ConfigDict(), ConfigDict()
  asked.protections[method] = ConfigDict({"num_rounds": num_rounds}).unlock()
  asked.protections[method].update(options)
  row = rows.settings(asked, method, model)
  built = build_protection(row, model.model, trained=model.params is not None)
  grey = is_grey(images)
  data = batches.make_batches(
    images,
    min(size, len(images)),
    cond=model.embeddings([""] * len(images) if prompts is None else [*prompts]),
    grey=grey.astype(np.uint8) if grey.any() else None,
  )
  num_rounds = 1 if built.drawn_once else num_rounds
  made, _ = protections.run(built, jax.random.key(seed), data, model.params, num_rounds=num_rounds)
  delta = batches.unbatch(np.asarray(made), len(images)) - images / np.float32(255)
  mean = delta.mean(axis=-1, keepdims=True)
  return constraints.saved(images, np.where(grey[:, None, None, None], mean, delta), radius_255)


def _check_pictures(images: np.ndarray, wanted: str) -> None:
  """Raises ConfigError for what is no array of pictures."""
  from udp_jax.errors import ConfigError

  kind = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}".strip()
  if str(getattr(images, "dtype", "")) != "uint8" or images.ndim != 4 or images.shape[-1] != 3:
    raise ConfigError(f"images are {kind}: uint8 (N, {wanted}) are needed")
  if not len(images):
    raise ConfigError("there are no pictures")


def purify(
  images: np.ndarray,
  method: str,
  model: Model | None = None,
  *,
  prompt: str = "",
  seed: int = 0,
  **options: Any,
) -> np.ndarray:
  """Purifies pictures, as an infringer would.

  Args:
    images: (N, H, W, 3) uint8.
    method: a module of `udp_jax.purifiers`.
    model: from `load_model`, for methods that use a diffusion model.
    prompt: caption of all pictures, for methods that denoise with a model with text.
    seed: decides every draw.
    **options: options of the method.

  Returns:
    (N, H, W, 3) uint8.

  Raises:
    ConfigError: a method or option is unknown, the method needs a model, or pictures do not fit.

  >>> import numpy as np
  >>> purify(np.full((2, 16, 16, 3), 128, np.uint8), "jpeg", quality=75).shape
  (2, 16, 16, 3)
  """
  import jax
  import numpy as np

  from udp_jax import purifiers, registry
  from udp_jax.errors import ConfigError
  from udp_jax.ops.keys import stream

  _check_pictures(images, "H x W x 3")
  functions, params = (None, None) if model is None else (model.model, model.params)
  accepted = registry.fields(registry.constructor("udp_jax.purifiers", method))
  cond = None if model is None or "cond" not in accepted else model.embeddings([prompt])
  if cond is not None:
    options.setdefault("cond", cond)
  elif prompt:
    raise ConfigError("a prompt is for methods that denoise with a model with text")
  purifier = purifiers.build(method, functions, options)
  key = jax.random.key(seed)
  made = purifier.init(key, params)
  return purifiers.purify(purifier, made, stream(key, "purifier"), images, np.arange(len(images)))


def verify(
  clean_dir: str | os.PathLike, protected_dir: str | os.PathLike, radius_255: float
) -> VerifyReport:
  """Checks saved files: every pair of pictures in two folders must be within a budget.

  Args:
    clean_dir: folder of the originals, in any format that is read.
    protected_dir: folder of the protected files, under the same names.
    radius_255: the largest allowed change of any value, in 8-bit levels.

  Raises:
    MissingDataError: a folder is missing, or neither holds a picture.
    ConfigError: the budget is not a number from 0 to 255.
  """
  from udp_jax.data import verify as verify_lib

  return verify_lib.verify(clean_dir, protected_dir, radius_255)
