"""What a threat is: training on pictures and sampling from what was learned, or editing pictures.

A threat is made once (`build`) and driven by the host:

  threat = threats.build("lora", model, {"train_steps": 800, "rank": 4})
  state = threat.init(key, params)                     # state.params is theta, nothing else is
  state, losses = threat.update(key, state, data, 50, params)   # params: the base model, frozen
  theta = threat.final(state)                          # what is checkpointed, kept and saved
  samples = threat.sample(key, threat.trainable.merge(theta, params), 4, cond, uncond)

`stages.train_stage` does the first four lines with progress, checkpoints and metrics. Conditioned
models find every picture's prompt in `Batch.cond`: embeddings (..., L, D) made once beforehand, or
token ids (..., L), which a threat with `needs_token_ids` insists on because it trains the text
side. Several captions a picture, (..., K, L), are drawn from anew at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from udp_jax import lookup
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.trainable import Theta, Trainable, whole
from udp_jax.training import TrainState

_PACKAGE = "udp_jax.threats"


class Threat(NamedTuple):
  """Pure compiled functions, so that the host loop can stop, save and go on between two calls.

  The functions are jitted once, when the threat is made: all the models that one threat trains
  share their compilation.

  Attributes:
    init: (key, params) -> state, whose `params` is theta; params is the base model, or None to
      start afresh (not with `needs_params`).
    update: (key, state, data, num_steps, params=None) -> (state, losses (num_steps,)). Draws depend
      on `key` and on the state's step count alone. `num_steps` is static; the state is donated;
      `params` is the base model that theta is merged into, left as it is (and not looked at without
      `needs_params`).
    sample: (key, params, num_samples, cond=None, uncond=None) -> images (num_samples, H, W, 3) in
      [0, 1]. params with theta merged in; cond (num_samples, L, D) or token ids (num_samples, L);
      uncond the same of the empty or negative prompt, (1, ...) or (num_samples, ...), which
      classifier-free guidance needs.
    final: state -> theta to keep (averaged, where the threat keeps an average).
    train_steps: how long this threat trains.
    trainable: theta in and out of the parameters.
    needs_params: it starts from a trained model, and `update` takes that one's params.
    needs_token_ids: `Batch.cond` must be token ids: embeddings of before would not be trained.
    prior_weight: of the class pictures in a step; 0 where the threat takes none. Data with class
      pictures comes from `dreambooth.batches_with_prior`.
    save: (folder, theta) -> path, writes the small file that PyTorch diffusers loads; None where
      the whole model has to be saved.
  """

  init: Callable[[jax.Array, Params | None], TrainState]
  update: Callable[..., tuple[TrainState, jax.Array]]
  sample: Callable[..., jax.Array]
  final: Callable[[TrainState], Theta]
  train_steps: int
  trainable: Trainable = whole()
  needs_params: bool = False
  needs_token_ids: bool = False
  prior_weight: float = 0.0
  save: Callable[[Path, Theta], Path] | None = None


class Edit(NamedTuple):
  """A threat that trains nothing: it edits pictures with the model as it is.

  Attributes:
    apply: (keys, params, images, cond=None, uncond=None, masks=None) -> images. keys (B,), one a
      picture: a result does not depend on the batch around it. images (B, H, W, 3) in [0, 1]; cond
      and uncond as in `Threat.sample`; masks (B, H, W, 1) in [0, 1], 1 where the picture is made
      anew.
    needs_masks: whether `apply` insists on masks.
  """

  apply: Callable[..., jax.Array]
  needs_masks: bool = False


def build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Threat:
  """Makes the threat `name` (a module of this package) that trains, from its keyword options.

  Raises:
    ConfigError: an unknown threat, one that edits and trains nothing, or an unknown, missing or
      unusable option.
  """
  made = _build(name, model, options)
  if not isinstance(made, Threat):
    raise ConfigError(f"threat {name} edits pictures and trains nothing")
  return made


def build_edit(name: str, model: DiffusionModel, options: dict[str, Any]) -> Edit:
  """Makes the threat `name` (a module of this package) that edits, from its keyword options.

  Raises:
    ConfigError: as `build`, and for a threat that trains.
  """
  made = _build(name, model, options)
  if not isinstance(made, Edit):
    raise ConfigError(f"threat {name} trains a model and edits no pictures")
  return made


def _build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Threat | Edit:
  function = lookup.constructor(_PACKAGE, name)
  lookup.check_options(function, f"threat {name}", options)
  return function(model, **options)


def frozen_params(params: Params | None) -> Params:
  """`params`, which a threat with `needs_params` cannot do without.

  Raises:
    ConfigError: there are none.
  """
  if params is None:
    raise ConfigError("fine-tuning starts from a trained model: give one")
  return params
