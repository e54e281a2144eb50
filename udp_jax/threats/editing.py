"""What the threats that edit share: a sampler's chain that starts from a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import chain as chain_lib
from udp_jax.ops import samplers, schedules
from udp_jax.randomness import stream
from udp_jax.threats.finetuning import make_chain, placement

# Options of `Start` that every edit passes on, see `passing.passes_on`.
COMMON = ("sample_steps", "sampler", "eta", "scheduler")


class Start:
  """Where and how a picture is taken up and denoised.

  Args:
    model: what edits.
    strength: in (0, 1]: how far towards noise.
    sample_steps: of the whole chain, of which strength * sample_steps are run.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    eta: of DDIM; 0 is deterministic.
    scheduler: the model's scheduler_config.json, for where its timesteps lie.

  Attributes:
    timestep: up to which the picture is noised.
  """

  def __init__(
    self,
    model: DiffusionModel,
    *,
    strength: float,
    sample_steps: int = 50,
    sampler: str = "ddim",
    eta: float = 0.0,
    scheduler: Mapping[str, Any] | None = None,
  ):
    """Checks the options of an edit, see the class.

    Raises:
      ConfigError: an unknown sampler, or a strength or a number of steps that cannot be used.
    """
    self._model = model
    self._chain = make_chain(model, sampler, sample_steps, eta=eta, scheduler=scheduler)
    try:
      self._first = chain_lib.start_step(sample_steps, strength)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    placed = placement(sampler, scheduler)
    steps = samplers.spaced_timesteps(model.schedule.num_steps, sample_steps, **placed)
    self.timestep = int(steps[self._first])

  def noised(self, x0: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t of the chain's first timestep."""
    return schedules.add_noise(self._model.schedule, x0, noise, self.timestep)

  def denoised(
    self, keys: jax.Array, predict: Callable[..., jax.Array], x_t: jax.Array, **more: Any
  ) -> jax.Array:
    """x0 from x_t; keys (B,), one a picture, for samplers that draw."""
    keys = jax.vmap(lambda key: stream(key, "chain"))(keys)
    return self._chain(keys, predict, x_t, first_step=self._first, **more)
