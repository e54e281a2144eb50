"""A model that is trained for a moment, for the stages that train and sample."""

from __future__ import annotations

from pathlib import Path

import jax

from udp_jax import threats
from udp_jax.runtime import mesh
from udp_jax.stages import train
from udp_jax.stages.records import Run

KEY = jax.random.key(3)


def train_briefly(model, images, folder: Path, **options):
  """Seven steps of training from scratch; (the threat, its parameters)."""
  threat = threats.build(
    "scratch", model, {"train_steps": 7, "learning_rate": 0.01, "sample_steps": 3} | options
  )
  run = Run(
    mesh=mesh.make_mesh(),
    folder=folder,
    key=KEY,
    label="train",
    global_batch_size=8,
    checkpoint_every=4,
    steps_per_call=3,
    progress=False,
  )
  return threat, train.train(threat, images, None, run)
