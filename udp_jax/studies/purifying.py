"""Purifies a folder of pictures with the method and the model that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from udp_jax import purifiers, registry
from udp_jax.data import manifest, picture_files
from udp_jax.data.picture_files import PictureFolder
from udp_jax.errors import ConfigError
from udp_jax.models import factory, pipeline
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.purifiers import diffpure
from udp_jax.runtime import mesh
from udp_jax.stages import purify
from udp_jax.stages.purify import Prepared
from udp_jax.stages.records import Run
from udp_jax.studies import distances, settings, usefulness


class Asked(NamedTuple):
  """A folder of pictures to purify.

  Attributes:
    folder: pictures of any sizes.
    output: where the purified pictures are written.
    workdir: working folder, for records of finished files.
    options: of the method, beside the config's and in place of them: those of `chain` hold
      dictionaries, which no frozen config can.
    prompt: for diffusion methods on models with text.
    strict: whether an unusable picture is an error; otherwise it is skipped.
    overwrite: as `Run`.
    progress: whether to show progress bars.
  """

  folder: Path
  output: Path
  workdir: Path
  options: Mapping[str, Any] = {}
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
  config = settings.frozen(config, settings.pinned(config))
  given = distances.in_options(
    "purifiers", config.method, config.options.to_dict() | dict(asked.options)
  )
  method = _prepare(config, given, asked.prompt)
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


def _prepare(config: Any, given: dict[str, Any], prompt: str) -> Prepared:
  """Returns the purifier of a config with these options and its parameters."""
  options = dict(given)
  record = {
    "method": config.method,
    "options": given,
    "model": config.model.path,
    **{name: value for name in pipeline.Choices._fields if (value := config.model[name])},
    "purifier_model": config.purifier_model.path,
    "prompt": prompt,
    "dtype": config.performance.dtype,
    "seed": config.seed,
  } | distances.record(given)
  if path := given.get("autoencoder"):
    record["autoencoder_sha256"] = usefulness.fingerprint(path)
  model = Model(None)  # type: ignore[arg-type]  # Most purifiers work without one.
  chosen = config.model
  if config.purifier_model.path:
    if not purifiers.uses_prior(config.method, options):
      known = f"{', '.join(purifiers.PRIORS[:-1])} and {purifiers.PRIORS[-1]}"
      raise ConfigError(f"{config.method} has no prior: --purifier_model is for {known}")
    chosen = config.purifier_model
  if chosen.path:
    model = factory.open_model(chosen, config.performance)
    accepted = registry.fields(registry.constructor("udp_jax.purifiers", config.method))
    if model.tokenizer is not None and model.model.embed is not None:
      if "cond" in accepted:
        token_ids = model.tokenizer([prompt])
        options["cond"] = jax.jit(model.model.embed)(model.params, token_ids)
    elif prompt:
      raise ConfigError("--prompt is for models with a text encoder; this one has none")
  purifier = purifiers.build(config.method, model.model, options)
  if config.method in purifiers.PRIORS:
    timestep, variance = options["timestep"], options["variance"]
    record["options"]["variance"] = diffpure.check(model.model, "", timestep, variance)
  params = purifier.init(jax.random.key(config.seed), model.params)
  return Prepared(purifier, params, record)
