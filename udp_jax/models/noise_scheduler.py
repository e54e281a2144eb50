"""Converts the noise schedule of a model folder from and to diffusers' scheduler_config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.ops import chain, schedules
from udp_jax.runtime import files


def load_scheduler_config(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Reads the noise scheduler's fields from a model or pipeline folder; None without the file.

  Looks for scheduler_config.json in `folder`, in `folder`/scheduler and in ../scheduler.

  Raises:
    BadDataError: the file is damaged.
  """
  folder = Path(folder)
  for home in (folder, folder / "scheduler", folder.parent / "scheduler"):
    if (home / "scheduler_config.json").is_file():
      return files.read_json(home / "scheduler_config.json")
  return None


def schedule_from_config(config: Mapping[str, Any]) -> schedules.NoiseSchedule:
  """Builds the noise schedule described by diffusers' fields; missing fields get its defaults.

  Raises:
    BadDataError: this library does not have the schedule.
  """
  try:
    schedule = _named_schedule(config)
    # Like diffusers, rescale the betas of every kind of schedule.
    return schedules.zero_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule
  except (TypeError, ValueError) as error:
    raise BadDataError(f"scheduler_config.json: {error}") from error


def _named_schedule(config: Mapping[str, Any]) -> schedules.NoiseSchedule:
  prediction_type = config.get("prediction_type", "epsilon")
  kind = config.get("beta_schedule", "linear")
  num_steps = config.get("num_train_timesteps", 1000)
  ends = {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
  if config.get("trained_betas") is not None:
    return schedules.from_betas(config["trained_betas"], prediction_type=prediction_type)
  match kind:
    case "linear":
      return schedules.linear(num_steps, **ends, prediction_type=prediction_type)
    case "scaled_linear":
      return schedules.scaled_linear(num_steps, **ends, prediction_type=prediction_type)
    case "squaredcos_cap_v2":
      return schedules.cosine(num_steps, prediction_type=prediction_type)
  raise ValueError(f"beta_schedule {kind!r} is not supported")


def scheduler_config(schedule: schedules.NoiseSchedule, **fields: Any) -> dict[str, Any]:
  """Returns the `DDPMScheduler` fields for `schedule` with full betas, e.g. for `save_pipeline`.

  `fields` are added unchanged, e.g. clip_sample=True (diffusers' default).
  """
  abar = np.asarray(schedule.alphas_cumprod, np.float64)
  config = {
    "num_train_timesteps": len(abar),
    "prediction_type": schedule.prediction_type,
    **fields,
  }
  for kind in ("linear", "squaredcos_cap_v2"):
    named = {"beta_schedule": kind, "beta_start": 1e-4, "beta_end": 0.02, **config}
    if np.array_equal(schedule_from_config(named).alphas_cumprod, schedule.alphas_cumprod):
      return named
  betas = 1.0 - abar / np.concatenate([[1.0], abar[:-1]])
  return {"trained_betas": betas.tolist(), **config}


def sampler_options(
  config: Mapping[str, Any] | None, sampler: str, *, latent: bool
) -> dict[str, Any]:
  """Returns keyword options of the `ops.samplers` function `sampler` for these scheduler fields.

  They match `DDIMScheduler.from_config(...)` and its siblings, whichever scheduler the folder names
  (PNDM, Euler, ...): a missing field means the default of the sampler that runs, not of the one
  that is named.

  Args:
    config: fields of scheduler_config.json; None for diffusers' defaults.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    latent: whether the model is latent; latents are never clipped, as in diffusers' pipelines.

  Raises:
    BadDataError: the sampler does not have a setting.
  """
  config = config or {}
  options: dict[str, Any] = {"clip_sample": False}
  if not latent:
    options["clip_sample"] = bool(config.get("clip_sample", True))
    for name, supported in (("thresholding", False), ("clip_sample_range", 1.0)):
      if config.get(name, supported) != supported:
        raise BadDataError(f"scheduler_config.json: {name}={config[name]!r} is not supported")
  multistep = sampler == "dpm_solver_pp_2m"
  options["spacing"] = config.get("timestep_spacing", "linspace" if multistep else "leading")
  if options["spacing"] not in chain.SPACINGS:
    known = ", ".join(chain.SPACINGS)
    raise BadDataError(
      f"scheduler_config.json: timestep_spacing {options['spacing']!r} is not one of {known}"
    )
  options["steps_offset"] = int(config.get("steps_offset", 0))
  if sampler == "ddim":
    options["set_alpha_to_one"] = bool(config.get("set_alpha_to_one", True))
  if sampler == "ddpm":
    options["variance"] = config.get("variance_type", "fixed_small")
    if options["variance"] not in chain.VARIANCES:
      raise BadDataError(
        f"scheduler_config.json: variance_type {options['variance']!r} is not supported"
      )
  return options
