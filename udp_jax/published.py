"""Published settings of protections, purifiers and threats, each with its unit and its source.

This table is the one place where they are written down. `tests/test_published.py` holds to it the
configs that promise published settings, and the numbers in the methods' docstrings. Fields have
their names in our configs; those ending in `_255` are 8-bit levels, converted from the scale of the
source, mostly [-1, 1] (one level is 1 / 127.5 there). A source is a public repository and the file,
script or notebook that sets the value. Settings of UDP and EUDP are missing: only the abstract of
arXiv:2306.01902 was at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
  """A published value.

  Attributes:
    value: the value, in the unit of our configs.
    unit: what it counts or measures; "" for names and switches.
    source: where it is written.
    also: further published values, of other scripts or variants; `source` names them too.
  """

  value: Any
  unit: str
  source: str
  also: tuple[Any, ...] = ()

  def allows(self, value: Any) -> bool:
    """Returns whether a config's value is a published one; numbers may differ by rounding.

    >>> Setting(6.375, "levels", "a paper").allows(6.4)
    True
    """
    return any(_same(value, known) for known in (self.value, *self.also))


def _same(value: Any, known: Any) -> bool:
  numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, known))
  # Papers round: 0.05 on [-1, 1], which is 6.375 levels, is quoted as 6.4.
  return abs(value - known) <= 5e-3 * abs(known) if numbers else value == known


def of(kind: str, method: str) -> Mapping[str, Setting]:
  """Returns the published settings of a method by field; empty if the table has none.

  Args:
    kind: "protections", "purifiers" or "threats".
    method: a module of that package.

  >>> of("threats", "textual_inversion")["learning_rate"].value
  0.002
  """
  return SETTINGS.get((kind, method), MappingProxyType({}))


def dreambooth_rate(rank: int, train_text_encoder: bool) -> float:
  """Returns the published learning rate of DreamBooth for what is trained.

  Args:
    rank: rank of low-rank updates; 0 trains all weights.
    train_text_encoder: whether the text encoder is trained too.

  >>> [dreambooth_rate(0, False), dreambooth_rate(0, True), dreambooth_rate(4, False)]
  [5e-06, 2e-06, 0.0001]
  """
  if rank:
    return 1e-4
  return 2e-6 if train_text_encoder else 5e-6


def _table(source: str, **fields: tuple[Any, ...]) -> Mapping[str, Setting]:
  """Settings of one source; a field is (value, unit), or (value, unit, also)."""
  return MappingProxyType(
    {name: Setting(value, unit, source, *also) for name, (value, unit, *also) in fields.items()}
  )


_LEVELS, _ROUNDS, _STEPS = "8-bit levels", "rounds", "optimiser steps"
_RATE, _NORM, _WEIGHT = "step of AdamW", "global norm of the gradient; 0 is unclipped", "factor"
_DIFFUSERS = "huggingface/diffusers, examples/"
_ANTI = "VinAIResearch/Anti-DreamBooth, "
# Options that Diff-Protect's and Mist's attacks share.
_SIXTEEN = {"radius_255": (16.0, _LEVELS), "step_size_255": (1.0, _LEVELS)}
_SIXTEEN |= {"num_rounds": (100, _ROUNDS)}
_SUBJECT = {
  "trains": ("denoiser_and_text", ""),
  "weight_decay": (1e-2, _WEIGHT),
  "prior_weight": (1.0, _WEIGHT),
  "num_class_images": (200, "pictures"),
  "class_prompt": ("a photo of person", ""),
}
_DREAMBOOTHED = _SUBJECT | {"radius_255": (6.375, _LEVELS), "step_size_255": (0.6375, _LEVELS)}
# ACE and ACE+: one program in two modes.
_ACE = (
  "caradryanl/ACE, attacks/aspl_lora_m.py; the LoRA's rate: psyker-team/mist-v2, attacks/mist.py"
)
_OF_ACE = {
  "radius_255": (4.0, _LEVELS),
  "step_size_255": (0.6375, _LEVELS),
  "num_rounds": (5, _ROUNDS),
  "train_steps": (5, _STEPS),
  "perturb_steps": (50, "steps"),
  "earliest": (0.6, "share of the schedule", (0.0,)),
  "trains": ("lora", ""),
  "rank": (4, ""),
  "learning_rate": (1e-4, _RATE),
  "clip_norm": (1.0, _NORM),
}

SETTINGS: Mapping[tuple[str, str], Mapping[str, Setting]] = MappingProxyType(
  {
    ("protections", "advdm"): _table(
      "xavihart/Diff-Protect, configs/attack/base.yaml; its g_mode is - by default, which lowers "
      "the loss (AdvDM-): AdvDM itself raises it",
      direction=("plus", "", ("minus",)),
      **_SIXTEEN,
    ),
    ("protections", "mist"): _table(
      "psyker-team/mist, mist_v3.py", rate=(1e4, _WEIGHT), start=("uniform", ""), **_SIXTEEN
    ),
    ("protections", "sds"): _table(
      "xavihart/Diff-Protect, configs/attack/base.yaml and code/attacks.py",
      direction=("minus", ""),
      rate=(5.0, _WEIGHT),
      start=("zero", ""),
      **_SIXTEEN,
    ),
    ("protections", "sds_z"): _table(
      "xavihart/Diff-Protect, configs/attack/base.yaml and code/attacks.py; no limit per pixel",
      latent_radius=(2 * 16 / 255, "scaled latents"),
      latent_step=(2 / 255, "scaled latents"),
      num_rounds=(100, _ROUNDS),
      direction=("minus", ""),
    ),
    ("protections", "photoguard_encoder"): _table(
      "MadryLab/photoguard, notebooks/demo_simple_attack_img2img.ipynb (also: inpainting, demo)",
      radius_255=(7.65, _LEVELS, (15.3,)),
      step_size_255=(2.55, _LEVELS, (1.275,)),
      num_rounds=(1000, _ROUNDS, (200,)),
      decay_steps=(1000, _ROUNDS, (200,)),
    ),
    ("protections", "photoguard_diffusion"): _table(
      "MadryLab/photoguard, notebooks/demo_complex_attack_inpainting.ipynb: an L2 ball and no "
      "limit per pixel (255 levels), steps of length 1 on [-1, 1]; also its L-inf form",
      l2_radius=(8.0, "L2 norm on [0, 1]; 16 on [-1, 1]"),
      radius_255=(255.0, _LEVELS, (12.75,)),
      step_size_255=(127.5, "L2 length, or levels", (0.765,)),
      num_rounds=(200, _ROUNDS),
      num_draws=(10, "draws", (5,)),
    ),
    ("protections", "glaze"): _table(
      "AAAAAAsuka/Impress, README.md, glaze.py, glaze_origin.py, style_transfer.py; also: its "
      "consistency term's 30, which is 1 in scaled latents",
      radius_255=(6.375, _LEVELS),
      step_size_255=(1.275, "step of Adam"),
      num_rounds=(500, _ROUNDS),
      target=("style_transfer", ""),
      style_prompt=("Cubism by Picasso", ""),
      sample_steps=(50, "steps"),
      perceptual_budget=(0.05, "LPIPS", (0.1,)),
      consistency_weight=(1.0, _WEIGHT),
    ),
    ("protections", "fsmg"): _table(
      _ANTI + "scripts/attack_with_fsmg.sh; one warm-up round trains, the others perturb",
      train_steps=(1000, _STEPS),
      perturb_steps=(1, "steps"),
      num_rounds=(101, _ROUNDS),
      learning_rate=(5e-7, _RATE),
      clip_norm=(1.0, _NORM),
      **_DREAMBOOTHED,
    ),
    ("protections", "aspl"): _table(
      _ANTI + "scripts/attack_with_aspl.sh and attacks/aspl.py, whose clipping sees no parameters",
      train_steps=(3, _STEPS),
      perturb_steps=(6, "steps"),
      num_rounds=(50, _ROUNDS),
      learning_rate=(5e-7, _RATE),
      clip_norm=(0.0, _NORM),
      **_DREAMBOOTHED,
    ),
    ("protections", "ace"): _table(_ACE, **_OF_ACE),
    ("protections", "ace_plus"): _table(_ACE, latent_weight=(100.0, _WEIGHT), **_OF_ACE),
    ("protections", "blurguard"): _table(
      "jsu-kim/BlurGuard, BlurGuard/configs/attack/base.yaml and BlurGuard/code/attacks.py: 50 of "
      "150 steps are sigma's; p takes steps of length 1.34 to 0.03 on [-1, 1] for 512x512",
      radius_255=(16.0, _LEVELS),
      step_size_255=(0.193, "levels, root mean square"),
      num_rounds=(100, _ROUNDS),
      decay_steps=(100, _ROUNDS),
      target=("zero", ""),
      sigma_steps=(50, "steps of Adam"),
      sigma_rate=(0.06, "step of Adam"),
      spectrum_budget=(0.0, "log10 of power"),
    ),
    ("protections", "diffusion_guard"): _table(
      "choi403/DiffusionGuard, config/diffusionguard.yaml",
      radius_255=(8.0, _LEVELS),
      step_size_255=(0.5, _LEVELS),
      num_rounds=(800, _ROUNDS),
      start=("zero", ""),
      sample_steps=(4, "steps"),
      masks=("contour_shrink", ""),
      contour_strength=(1.1, "radii of the region"),
      contour_smoothness=(0.1, "radii of the region"),
    ),
    ("protections", "metacloak"): _table(
      "liuyixin-louis/MetaCloak, script/sub/gen/metacloak.sh; 500 rounds train the pool, with "
      "a snapshot every 100, and four times over six snapshots 100 rounds perturb",
      radius_255=(11.0, _LEVELS),
      step_size_255=(1.1, _LEVELS),
      num_rounds=(2900, _ROUNDS),
      warmup_rounds=(500, _ROUNDS),
      restart_every=(100, _ROUNDS),
      train_steps=(2, _STEPS),
      perturb_steps=(6, "steps"),
      learning_rate=(5e-7, _RATE),
      clip_norm=(1.0, _NORM),
      transforms=("blur_and_flip", ""),
      **_SUBJECT,
    ),
    ("protections", "pid"): _table(
      "PKU-ML/Diffusion-PID-Protection, PID.py; its weight of 1 is for unscaled latents",
      radius_255=(12.75, _LEVELS),
      step_size_255=(1.0, _LEVELS),
      num_rounds=(1000, _ROUNDS),
      kind=("add-log", ""),
      mean_weight=(0.18215**-2, _WEIGHT),
      start=("uniform", ""),
    ),
    ("purifiers", "impress"): _table(
      "AAAAAAsuka/Impress, scripts/new/test_all.sh (Glaze); also: pg_mask_diff_test.sh",
      num_steps=(3000, "steps", (1000,)),
      learning_rate=(0.01, "step of Adam", (0.005,)),
      perceptual_weight=(0.1, _WEIGHT, (0.01,)),
      perceptual_budget=(0.1, "LPIPS"),
      noise_std=(0.1, "on [-1, 1]", (0.05,)),
    ),
    ("purifiers", "diffpure"): _table(
      "NVlabs/DiffPure, CIFAR-10; also: ImageNet", timestep=(100, "steps of 1000", (150,))
    ),
    ("purifiers", "gridpure"): _table(
      "ZhengyueZhao/GrIDPure, gridpure.py",
      num_iterations=(20, "iterations"),
      timestep=(10, "steps of 1000"),
      mix=(0.1, _WEIGHT),
    ),
    ("purifiers", "freqpure"): _table(
      "GaozhengPei/FreqPure, scripts/cifar10 _v2.sh; also: scripts/imagenet.sh",
      amplitude_cutoff=(3.0, "cycles a picture", (10.0,)),
      phase_cutoff=(3.0, "cycles a picture", (10.0,)),
      phase_range=(0.3, "radians"),
    ),
    ("purifiers", "noisy_upscaling"): _table(
      "ethz-spylab/robust-style-mimicry, README.md, whose upscaler is another one",
      std=(0.05, "on [0, 1]"),
    ),
    ("purifiers", "jpeg"): _table("jsu-kim/BlurGuard, purify.sh", quality=(75, "JPEG quality")),
    ("purifiers", "gaussian_noise"): _table(
      "ethz-spylab/robust-style-mimicry, README.md; also: jsu-kim/BlurGuard, purify.sh",
      std=(0.05, "on [0, 1]", (0.1,)),
    ),
    ("purifiers", "adverse_cleaner"): _table(
      "lllyasviel/AdverseCleaner", bilateral_passes=(64, "passes"), guided_passes=(4, "passes")
    ),
    ("threats", "textual_inversion"): _table(
      _DIFFUSERS + "textual_inversion: README.md (5e-4 with --scale_lr for a batch of 1 and 4 "
      "accumulated) and textual_inversion.py, which clips nothing and flips with flip_p=0.5",
      train_steps=(3000, _STEPS),
      global_batch_size=(4, "pictures"),
      learning_rate=(2e-3, _RATE),
      warmup_steps=(0, _STEPS),
      decay=("constant", ""),
      weight_decay=(1e-2, _WEIGHT),
      clip_norm=(0.0, _NORM),
      flip=(True, ""),
      num_vectors=(1, "tokens"),
    ),
    ("threats", "dreambooth"): _table(
      _DIFFUSERS + "dreambooth/README.md; also: with the text encoder (2e-6), and "
      "train_dreambooth_lora.py (1e-4 and 500 steps, to 5e-4 in other scripts); README_sdxl.md: "
      "500 steps of 1 with 4 accumulated at 1e-4, without class pictures",
      train_steps=(800, _STEPS, (500,)),
      global_batch_size=(2, "pictures, one of them of the class", (4,)),
      learning_rate=(5e-6, _RATE, (2e-6, 1e-4, 5e-4)),
      warmup_steps=(0, _STEPS),
      decay=("constant", ""),
      weight_decay=(1e-2, _WEIGHT),
      clip_norm=(1.0, _NORM),
      flip=(False, ""),
      prior_weight=(1.0, _WEIGHT, (0.0,)),
      num_class_images=(200, "pictures"),
      rank=(0, "", (4,)),
    ),
    ("threats", "lora"): _table(
      _DIFFUSERS + "text_to_image/train_text_to_image_lora.py, by docs/source/en/training/lora.md; "
      "also: 500 steps at a constant rate, without flips, of train_dreambooth_lora.py, and "
      "text_to_image/README_sdxl.md: 2 epochs of 833 pictures, one a step, at a constant rate",
      train_steps=(15000, _STEPS, (500, 1666)),
      global_batch_size=(4, "pictures", (1,)),
      learning_rate=(1e-4, _RATE),
      warmup_steps=(0, _STEPS),
      decay=("cosine", "", ("constant",)),
      weight_decay=(1e-2, _WEIGHT),
      clip_norm=(1.0, _NORM),
      flip=(True, "", (False,)),
      rank=(4, ""),
    ),
    ("threats", "full"): _table(
      _DIFFUSERS + "text_to_image/README.md (a batch of 1 and 4 accumulated, --use_ema)",
      train_steps=(15000, _STEPS),
      global_batch_size=(4, "pictures"),
      learning_rate=(1e-5, _RATE),
      warmup_steps=(0, _STEPS),
      decay=("constant", ""),
      weight_decay=(1e-2, _WEIGHT),
      clip_norm=(1.0, _NORM),
      ema_decay=(0.9999, "a step"),
      flip=(True, ""),
    ),
  }
)
