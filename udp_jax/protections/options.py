"""Options that protections share, each with one default, documented once.

Constructors take them as groups, `udp(model, ..., game=Game(train_steps=20))`; configs and flags
name only the fields, `config.protections.udp.train_steps` (see `udp_jax.registry`). The defaults
of the game follow from settings that were measured one at a time
(experiments/results/game_settings.md), and are those of the results in training_sets.md there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Game:
  """A round of the max-min game between a surrogate model and the perturbations.

  >>> dataclasses.replace(Game(), perturb_steps=2).train_steps
  60

  Attributes:
    train_steps: optimiser steps of the surrogate in each round.
    perturb_steps: sign steps of each picture in each round.
    start: the first perturbation, "zero", "uniform" (in the budget) or "sign" (every pixel at plus
      or minus the radius).
    learning_rate: step size of the surrogate's Adam or AdamW.
    clip_norm: global norm at which the surrogate's gradient is clipped; 0 clips nothing.
    warmup_rounds: number of first rounds that train but do not perturb.
    joint_gradients: whether one backward pass gives the gradients of both sides (`maxmin.joint`);
      `perturb_steps` is then ignored, and `probs` holds for both sides.
  """

  train_steps: int = 60
  perturb_steps: int = 4
  start: str = "zero"
  learning_rate: float = 1e-3
  clip_norm: float = 1.0
  warmup_rounds: int = 0
  joint_gradients: bool = False


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """The model that stands in for the infringer's model during protection.

  Attributes:
    trains: the trained part: "denoiser" (the whole U-Net), or for the U-Net of a latent model
      "lora" or "cross_attention" (keys and values of the text, as in CAAT). Methods that
      fine-tune the attacked model also accept "denoiser_and_text", for which `Batch.cond` must be
      token ids.
    rank: rank of the factors of "lora".
    restart_every: number of rounds after which the surrogate is initialised again; 0 for never.
    weight_decay: weight decay of the surrogate's AdamW.
  """

  trains: str = "denoiser"
  rank: int = 4
  restart_every: int = 0
  weight_decay: float = 1e-2


@dataclasses.dataclass(frozen=True)
class Adaptive:
  """Options that help a protection survive purifiers (see `protections.adaptive`).

  Attributes:
    transforms: names of random transforms, comma-separated, over which the objective is averaged;
      "" for none.
    consistency_weight: weight of the loss for pictures that the autoencoder does not reproduce,
      relative to the objective's own scale; 0 for none. Latent models only.
    num_draws: number of draws (of the transforms and of all else that the objective draws) over
      which a gradient is averaged, computed one after the other.
  """

  transforms: str = ""
  consistency_weight: float = 0.0
  num_draws: int = 1


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """The band of frequencies in which delta lives (see `protections.spectrum`).

  Attributes:
    band: "gaussian" (a low-pass), "dct" (a range of frequencies), or "pyramid" (low-passes of
      growing width, each with its part of the budget); "" for none.
    band_sigma: standard deviation of "gaussian", and of the finest level of "pyramid", in pixels
      of the model's picture; the default suits 64 px and a VAE factor of 4, not 512 and 8.
    band_low: lowest frequency of "dct", as a share of the highest.
    band_high: end of the range of "dct".
    band_shares: shares of the budget of the levels of "pyramid", finest first, comma-separated;
      together at most 1.
    band_reach: largest value of the optimised variable, in radii.
  """

  band: str = ""
  band_sigma: float = 3.0
  band_low: float = 0.0
  band_high: float = 0.2
  band_shares: str = "0.5,0.25,0.25"
  band_reach: float = 3.0


@dataclasses.dataclass(frozen=True)
class Prior:
  """The subject's class, which a surrogate must not forget (DreamBooth's prior preservation).

  Attributes:
    prior_weight: weight of the class pictures' loss; 0 trains without them, published is 1.
    class_ids: (L,) token ids of the class's prompt; configs give `class_prompt` ("a photo of a
      person"). None for models without prompts.
    num_class_images: number of class pictures that the model makes before it is trained, rounded
      up to whole batches; published is 200.
  """

  prior_weight: float = 0.0
  class_ids: Sequence[int] | None = None
  num_class_images: int = 200


@dataclasses.dataclass(frozen=True)
class Shift:
  """Anti-DreamBooth's target shift (see `objectives.target_shift`).

  Attributes:
    target: one of `targets.PATTERNS`, "zero", or the path of a picture, towards which the model's
      denoising step is moved; "" for no shift.
    target_weight: weight of the distance to it beside the denoising loss; published is 1.
  """

  target: str = ""
  target_weight: float = 1.0
