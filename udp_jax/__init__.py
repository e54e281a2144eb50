"""Unlearnable diffusion perturbations in JAX: protections, purifiers, threats, metrics.

The functions that a notebook needs. Pictures are a folder or files, pictures of Pillow, or arrays
of uint8, and come back as what they were:

  import udp_jax

  protected = udp_jax.protect(picture, "tiny_ldm", "eudp", strength="gentle")
  purified = udp_jax.purify(protected, "jpeg", quality=75)
  udp_jax.protect("photos", "tiny_ldm", output="photos-protected")
  udp_jax.verify("photos-protected.work/clean", "photos-protected").ok

`udp-jax` does the same from the command line. Importing this module imports nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from udp_jax.data.verify import VerifyReport
  from udp_jax.models.context import Model

__all__ = ["load_model", "protect", "purify", "verify"]


def load_model(path: str | os.PathLike, *, image_size: int = 0, dtype: str = "float32") -> Model:
  """Reads a diffusion model: Stable Diffusion 1.x, 2.x or XL, or a DDPM.

  Args:
    path: a folder in diffusers' layout, a .safetensors file of Stable Diffusion, OWNER/NAME on the
      Hugging Face Hub, or "tiny_ldm" for the small latent model of this package.
    image_size: side of the pictures in pixels, for a latent model; 0 for the model's own.
    dtype: data type of the networks' computation, "float32" or "bfloat16".

  Raises:
    ConfigError: the kind of model is unknown, or it cannot have this size.
    MissingDataError, BadDataError: the folder or a file in it is missing or damaged.

  >>> load_model("tiny_ldm").model.image_shape
  (64, 64, 3)
  """
  from udp_jax.commands import calls

  return calls.open_model(path, image_size=image_size, dtype=dtype)


def protect(
  pictures: Any,
  model: Model | str | os.PathLike,
  method: str = "eudp",
  *,
  strength: str | float | None = None,
  output: str | os.PathLike | None = None,
  **options: Any,
) -> Any:
  """Protects pictures of any size.

  Args:
    pictures: a folder, a file or a list of files; a picture of Pillow or a list; or an array
      (H, W, 3) or (N, H, W, 3) of uint8, or a list of arrays.
    model: the model to protect against: a name or folder as for `load_model`, or (for pictures in
      memory) what `load_model` returned.
    method: a module of `udp_jax.protections`.
    strength: the budget, "gentle" (4), "medium" (8), "strong" (16), or a number of 8-bit levels;
      the step is an eighth of it. None: `radius_255`, or 16.
    output: folder for the protected files, if `pictures` are paths. `output`.work, beside it, keeps
      the clean reference and lets a stopped call go on.
    **options: `radius_255` (8-bit levels) in place of `strength`; `step_size_255` (2); `num_rounds`
      (20; for files what `udp-jax protect` does); `seed` (0); `batch_size` (16 pictures or tiles;
      32 for files); `prompts`, for models with text: a caption for each picture in memory, or one
      for all files without a caption; and those of the method, flat, as configs spell them
      (`train_steps`, ...).

  Returns:
    As `pictures`: arrays of uint8, pictures of Pillow, or the paths of what was written. No value
    changes by more than the budget; grey pictures stay grey.

  Raises:
    ConfigError: the method, an option or the pictures cannot be used.
    MissingDataError, BadDataError: a model or a picture is missing or damaged.
    DivergedError: the perturbation is not finite.
    OutputError: the output folder cannot be used.

  >>> import numpy as np
  >>> clean = np.full((2, 64, 64, 3), 128, np.uint8)
  >>> made = protect(clean, load_model("tiny_ldm"), "random_noise", strength="medium")
  >>> int(np.abs(made.astype(int) - clean).max())
  8
  """
  from udp_jax.commands import calls

  given = calls.take(pictures)
  return calls.protect(given, model, method, strength=strength, output=output, options=options)


def purify(
  pictures: Any,
  method: str,
  model: Model | str | os.PathLike | None = None,
  *,
  output: str | os.PathLike | None = None,
  prompt: str = "",
  **options: Any,
) -> Any:
  """Purifies pictures, as an infringer would.

  Args:
    pictures: as for `protect`.
    method: a module of `udp_jax.purifiers`.
    model: as for `protect`, for methods that use a diffusion model.
    output: folder for the purified files, if `pictures` are paths.
    prompt: caption of all pictures, for methods that denoise with a model with text.
    **options: options of the method, and `seed` (0), which decides every draw.

  Returns:
    As `pictures`: arrays of uint8, pictures of Pillow, or the paths of what was written.

  Raises:
    ConfigError: a method or option is unknown, the method needs a model, or pictures do not fit.
    MissingDataError, BadDataError, OutputError: as `protect`.

  >>> import numpy as np
  >>> purify(np.full((2, 16, 16, 3), 128, np.uint8), "jpeg", quality=75).shape
  (2, 16, 16, 3)
  """
  from udp_jax.commands import calls

  given = calls.take(pictures)
  return calls.purify(given, method, model, output=output, prompt=prompt, options=options)


def verify(clean: Any, protected: Any, radius_255: str | float | None = None) -> VerifyReport:
  """Checks that protected pictures keep a budget; folders are matched by the files' names.

  Args:
    clean: the originals: a folder, or pictures as for `protect`.
    protected: the protected pictures, in the same form and order.
    radius_255: the largest allowed change of any value, in 8-bit levels or by a strength's name;
      None for what the manifest of the folder `protected` promises.

  Raises:
    MissingDataError: a folder is missing, or neither holds a picture.
    ConfigError: the budget is not a number from 0 to 255, or pictures have no counterpart.

  >>> import numpy as np
  >>> clean = np.full((2, 8, 8, 3), 128, np.uint8)
  >>> verify(clean, clean + np.uint8(5), "gentle").ok
  False
  """
  from udp_jax.commands import calls

  return calls.verify(calls.take(clean), calls.take(protected), radius_255)
