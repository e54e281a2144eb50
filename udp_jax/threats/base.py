"""What a threat is: training on a folder of pictures, and sampling from what was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from udp_jax import lookup
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.training import Batch, TrainState

_PACKAGE = "udp_jax.threats"


class Threat(NamedTuple):
  """Pure compiled functions, so that the host loop can stop, save and go on between two calls.

  The functions are jitted once, when the threat is made: all the models that one threat trains
  share their compilation.

  Attributes:
    init: (key, params) -> state; `params` to start from, or None to start afresh.
    update: (key, state, data, num_steps) -> (state, losses (num_steps,)). Draws depend on `key` and
      on the state's step count alone. `num_steps` is static; the state is donated.
    sample: (key, params, num_samples, cond=None) -> images (num_samples, H, W, 3) in [0, 1].
    final: state -> the parameters to sample with (averaged, where the threat keeps an average).
    train_steps: how long this threat trains.
  """

  init: Callable[[jax.Array, Params | None], TrainState]
  update: Callable[[jax.Array, TrainState, Batch, int], tuple[TrainState, jax.Array]]
  sample: Callable[..., jax.Array]
  final: Callable[[TrainState], Params]
  train_steps: int


def build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Threat:
  """Makes the threat `name` (a module of this package) from its keyword options.

  Raises:
    ConfigError: an unknown threat, or an unknown, missing or unusable option.
  """
  function = lookup.constructor(_PACKAGE, name)
  lookup.check_options(function, f"threat {name}", options)
  return function(model, **options)
