"""EUDP: UDP with timesteps drawn from a distribution derived from the noise schedule.

delta reaches the network as sqrt(abar_t) delta and is drowned by sqrt(1 - abar_t) noise, so a draw
of t at which nothing of it is left is a wasted step. The family `ops.timesteps.schedule_power` is a
reconstruction from the paper's abstract (arXiv:2306.01902), not the authors' formula; the default
(a, b) is the one that measured best in this project's ablation.
"""

from __future__ import annotations

from typing import Any

from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections.base import Protection
from udp_jax.protections.udp import udp


def eudp(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  a: float = 2.0,
  b: float = 0.0,
  train_steps: int = 30,
  perturb_steps: int = 2,
  start: str = "sign",
  learning_rate: float = 8e-4,
  clip_norm: float = 1.0,
  warmup_rounds: int = 0,
  restart_every: int = 0,
  joint_gradients: bool = False,
  trains: str = "denoiser",
  rank: int = 4,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """The bilevel loop with p(t) proportional to abar_t^a (1 - abar_t)^b in the perturb steps.

  Args:
    model: see `udp`.
    radius: see `udp`.
    step_size: see `udp`.
    a: power of abar_t; (0, 0) is UDP.
    b: power of 1 - abar_t.
    train_steps: see `udp`.
    perturb_steps: see `udp`.
    start: see `udp`.
    learning_rate: see `udp`.
    clip_norm: see `udp`.
    warmup_rounds: see `udp`.
    restart_every: see `udp`.
    joint_gradients: see `udp`.
    trains: see `udp`.
    rank: see `udp`.
    transforms: see `udp`.
    consistency_weight: see `udp`.
  """
  options: dict[str, Any] = {
    "train_steps": train_steps,
    "perturb_steps": perturb_steps,
    "start": start,
    "learning_rate": learning_rate,
    "clip_norm": clip_norm,
    "warmup_rounds": warmup_rounds,
    "restart_every": restart_every,
    "joint_gradients": joint_gradients,
    "trains": trains,
    "rank": rank,
    "transforms": transforms,
    "consistency_weight": consistency_weight,
  }
  probs = timesteps.schedule_power(model.schedule, a, b)
  return udp(model, radius=radius, step_size=step_size, probs=probs, **options)
