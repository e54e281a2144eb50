"""Purifies a folder of pictures with the method and the model that a config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax

from udp_jax import purifiers, registry
from udp_jax.data import manifest, picture_files
from udp_jax.data.picture_files import PictureFolder
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.runtime import mesh
from udp_jax.stages import purify
from udp_jax.stages.purify import Prepared
from udp_jax.stages.records import Run


class Asked(NamedTuple):
  """A folder of pictures to purify.

  Attributes:
    folder: pictures of any sizes.
    output: where the purified pictures are written.
    workdir: working folder, for records of finished files.
    prompt: for diffusion methods on models with text.
    strict: whether an unusable picture is an error; otherwise it is skipped.
    overwrite: as `Run`.
    progress: whether to show progress bars.
  """

  folder: Path
  output: Path
  workdir: Path
  prompt: str = ""
  strict: bool = False
  overwrite: bool = False
  progress: bool = True


def purify_folder(config: Any, asked: Asked) -> tuple[dict[str, Any], PictureFolder]:
  """Purifies a folder of pictures; returns the manifest of the output and the pictures.

  Args:
    config: as `studies.configs.purification.purification` makes it, frozen.
    asked: what is purified, and where to.

  Raises:
    ConfigError, MissingDataError, BadDataError: the method, the model or the pictures do not fit.
    DivergedError, OutputError, Preempted: as `stages.purify.purify`.
  """
  for field in ("per_device_batch_size", "steps_per_call"):
    if config[field] < 1:
      raise ConfigError(f"config.{field} is {config[field]}; it must be at least 1")
  # Whether a finished output lacks anything is known only once the pictures are read.
  manifest.check_output(asked.output, overwrite=asked.overwrite, extend=True, inputs_follow=True)
  method = _prepare(config, asked.prompt)
  pictures = picture_files.list_pictures(asked.folder, strict=asked.strict)
  run = Run(
    mesh=mesh.make_mesh(),
    folder=asked.workdir,
    key=stream(jax.random.key(config.seed), "purifier"),
    label="purify",
    sample_batch_size=config.per_device_batch_size,
    steps_per_call=config.steps_per_call,
    overwrite=asked.overwrite,
    progress=asked.progress,
  )
  return purify.purify(method, pictures, asked.output, run, strict=asked.strict), pictures


def _prepare(config: Any, prompt: str) -> Prepared:
  """Returns the purifier of a config with its parameters."""
  options = config.options.to_dict()
  record = {
    "method": config.method,
    "options": config.options.to_dict(),
    "model": config.model.path,
    "prompt": prompt,
    "dtype": config.performance.dtype,
    "seed": config.seed,
  }
  model = Model(None)  # type: ignore[arg-type]  # Most purifiers work without one.
  if config.model.path:
    model = factory.open_model(config.model, config.performance)
    accepted = registry.fields(registry.constructor("udp_jax.purifiers", config.method))
    if model.tokenizer is not None and model.model.embed is not None:
      if "cond" in accepted:
        token_ids = model.tokenizer([prompt])
        options["cond"] = jax.jit(model.model.embed)(model.params, token_ids)
    elif prompt:
      raise ConfigError("--prompt is for models with a text encoder; this one has none")
  purifier = purifiers.build(config.method, model.model, options)
  params = purifier.init(jax.random.key(config.seed), model.params)
  return Prepared(purifier, params, record)
