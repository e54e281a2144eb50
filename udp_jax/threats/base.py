"""The types of threats: training on pictures and sampling from the result, or editing pictures.

A threat is made once (`build`) and driven by the host:

  threat = threats.build("lora", model, {"train_steps": 800, "rank": 4})
  state = threat.init(key, params)                     # state.params is theta, nothing else is
  state, losses = threat.update(key, state, data, 50, params)   # params: the base model, frozen
  theta = threat.final(state)                          # what is checkpointed, kept and saved
  samples = threat.sample(key, threat.trainable.merge(theta, params), 4, cond, uncond)

`stages.train.train` runs the first four lines with progress, checkpoints and metrics.
Conditioned models find each picture's prompt in `Batch.cond`: embeddings (..., L, D) computed once
beforehand, or token ids (..., L), which a threat with `needs_token_ids` requires because it trains
the text side. With several captions per picture, (..., K, L), each step draws one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.editing import EditFn
from udp_jax.models.sampling import SampleFn
from udp_jax.models.trainable import Theta, Trainable, whole
from udp_jax.objectives.training import TrainState

_PACKAGE = "udp_jax.threats"


class InitFn(Protocol):
  """Makes the initial training state."""

  def __call__(self, key: jax.Array, params: Params | None, /) -> TrainState:
    """Extracts theta from the base model, or initialises it.

    Args:
      key: decides every draw.
      params: parameters of the base model; None to start from scratch (not with `needs_params`).

    Returns:
      A state whose `params` is theta.
    """


class UpdateFn(Protocol):
  """Runs some training steps."""

  def __call__(
    self,
    key: jax.Array,
    state: TrainState,
    data: Batch,
    num_steps: int,
    /,
    params: Params | None = None,
  ) -> tuple[TrainState, jax.Array]:
    """Takes `num_steps` optimiser steps.

    Args:
      key: the same in every call: draws depend only on it and on the state's step count.
      state: from `InitFn` or the call before; it is donated.
      data: pictures, leaves (num_batches, B, ...).
      num_steps: number of optimiser steps, static.
      params: parameters of the base model, which theta is merged into and which stay unchanged;
        ignored without `needs_params`.

    Returns:
      The state after the steps, and the loss of each step, (num_steps,).
    """


class Threat(NamedTuple):
  """A threat that trains, as compiled functions: the host can stop, save and resume between calls.

  The functions are jitted once, when the threat is made; all models that one threat trains share
  the compilation.

  Attributes:
    init: (key, params) -> state.
    update: (key, state, data, num_steps, params=None) -> (state, losses (num_steps,)).
    sample: (key, params, num_samples, cond=None, uncond=None) -> images (num_samples, H, W, 3) in
      [0, 1], with theta merged into params.
    final: state -> the theta to keep (averaged, if the threat keeps an average).
    train_steps: number of optimiser steps of this threat.
    trainable: extracts theta from the parameters and merges it back.
    needs_params: whether training starts from a trained model, whose params `update` then takes.
    needs_token_ids: whether `Batch.cond` must be token ids: fixed embeddings could not be trained.
    prior_weight: weight of the class pictures in a step; 0 if the threat uses none. Data with class
      pictures come from `data.batches.batches_with_prior`.
    save: (folder, theta) -> path, writes the small file that PyTorch diffusers loads; None if the
      whole model has to be saved.
  """

  init: InitFn
  update: UpdateFn
  sample: SampleFn
  final: Callable[[TrainState], Theta]
  train_steps: int
  trainable: Trainable = whole()
  needs_params: bool = False
  needs_token_ids: bool = False
  prior_weight: float = 0.0
  save: Callable[[Path, Theta], Path] | None = None


class Edit(NamedTuple):
  """A threat that trains nothing: it edits pictures with the given model.

  Attributes:
    apply: (keys, params, images, cond=None, uncond=None, masks=None) -> images (B, H, W, 3).
    needs_masks: whether `apply` requires masks.
  """

  apply: EditFn
  needs_masks: bool = False


def build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Threat:
  """Makes the training threat `name` (a module of this package) from its keyword options.

  Raises:
    ConfigError: the threat is unknown or edits without training, or an option is unknown, missing
      or unusable.

  >>> from udp_jax.models import toy
  >>> options = {"train_steps": 20, "learning_rate": 1e-3, "sample_steps": 10}
  >>> build("scratch", toy.on_pixels(), options).train_steps
  20
  """
  made = _build(name, model, options)
  if not isinstance(made, Threat):
    raise ConfigError(f"threat {name} edits pictures and trains nothing")
  return made


def build_edit(name: str, model: DiffusionModel, options: dict[str, Any]) -> Edit:
  """Makes the editing threat `name` (a module of this package) from its keyword options.

  Raises:
    ConfigError: as for `build`, and for a threat that trains.

  >>> from udp_jax.models import toy
  >>> build_edit("img2img", toy.on_pixels(), {"strength": 0.5, "sample_steps": 10}).needs_masks
  False
  """
  made = _build(name, model, options)
  if not isinstance(made, Edit):
    raise ConfigError(f"threat {name} trains a model and edits no pictures")
  return made


def _build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Threat | Edit:
  function = registry.constructor(_PACKAGE, name)
  return registry.make(function, f"threat {name}", model, options=options)


def frozen_params(params: Params | None) -> Params:
  """Returns `params`, which a threat with `needs_params` requires.

  Raises:
    ConfigError: `params` is None.

  >>> frozen_params({"unet": 1})
  {'unet': 1}
  >>> frozen_params(None)
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: fine-tuning starts from a trained model: give one
  """
  if params is None:
    raise ConfigError("fine-tuning starts from a trained model: give one")
  return params
