"""The round of a race: UDP on random pictures, ready to be compiled."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from udp_jax import protections
from udp_jax.benchmark import models
from udp_jax.data import batches
from udp_jax.models import latent, performance
from udp_jax.models.base import DiffusionModel
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE, Protection
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import sharding
from udp_jax.stages.compiled_round import CompiledRound, Program

PHASES = {"min": TRAIN, "max": PERTURB, "round": WHOLE, "joint": WHOLE}
# As in the library's studies: budget and step in 8-bit levels.
_BUDGET = {"radius_255": 16.0, "step_size_255": 2.0, "start": "sign"}


class Problem(NamedTuple):
  """A round that is ready to be compiled."""

  protection: Protection
  model: DiffusionModel
  key: jax.Array
  data: batches.Batch
  params: Any
  state: Any
  compiled: CompiledRound


@dataclasses.dataclass(frozen=True)
class Spec:
  """The specification of a raced round.

  Attributes:
    unet: fields of the U-Net's config, as for `models.build`.
    performance: `config.performance`.
    batch: pictures per batch.
    vae: fields of the autoencoder's config, for a latent model.
    image_size: side of a latent model's pictures, in pixels.
    prompt_length: tokens per prompt of a latent model; prompts come as embeddings.
    num_batches: number of batches in the data set.
    train_steps: train steps in a round.
    perturb_steps: perturb steps in a round.
    joint: whether one backward pass serves weights and delta.
    spread: whether the round runs on all devices, not only on the first.
    trains: part of the model that the surrogate trains, as the option of UDP.
    phase: the only phase that the program can run, "min" or "max"; "" for the round with both.
    method: "udp", or "advdm" for a latent model, which is then frozen: one step of every batch.
  """

  unet: dict[str, Any]
  performance: dict[str, Any]
  batch: int
  vae: dict[str, Any] | None = None
  image_size: int = 0
  prompt_length: int = 0
  num_batches: int = 1
  train_steps: int = 1
  perturb_steps: int = 1
  joint: bool = False
  spread: bool = False
  trains: str = "denoiser"
  phase: str = ""
  method: str = "udp"


def build(spec: Spec) -> Problem:
  """Builds the method on random pictures; the random weights have a trained network's scale."""
  model = models.build(spec.unet, spec.performance, vae=spec.vae, image_size=spec.image_size)
  protection = protections.build(spec.method, model, _options(spec))
  if spec.phase:
    protection = _of_phase(protection, PHASES[spec.phase])
  generator = np.random.default_rng(0)
  count = spec.num_batches * spec.batch
  images = generator.integers(0, 256, (count, *model.image_shape), np.uint8)
  cond = None
  if spec.vae is not None:
    width = spec.unet["cross_attention_dim"]
    cond = generator.standard_normal((count, spec.prompt_length, width), np.float32)
  mesh = mesh_lib.make_mesh(None if spec.spread else jax.devices()[:1])
  data = mesh_lib.place_batches(batches.make_batches(images, spec.batch, cond=cond), mesh)
  key = jax.random.key(0)
  params = models.random_params(model, generator)
  if spec.performance.get("frozen_dtype"):
    dtype, parts = performance.frozen(spec.performance)
    params = latent.cast_parts(params, dtype, parts=parts)
  params = mesh_lib.place(params, sharding.param_shardings(params, mesh))
  compiled = CompiledRound.of(protection, key, data, params, mesh)
  state = compiled.init(key, data, params)
  # A pixel model is trained as a whole and is in the state; a latent one has frozen parameters.
  frozen = None if spec.vae is None else params
  return Problem(protection, model, key, data, frozen, state, compiled)


def _options(spec: Spec) -> dict[str, Any]:
  if spec.method == "advdm":
    return dict(_BUDGET)
  options = {**_BUDGET, "learning_rate": 8e-4, "train_steps": spec.train_steps}
  options["perturb_steps"] = spec.perturb_steps
  if spec.joint:
    options["joint_gradients"] = True
  if spec.trains != "denoiser":
    options["trains"] = spec.trains
  return options


def _of_phase(protection: Protection, only: int) -> Protection:
  """Returns a protection whose rounds are one phase, so that nothing else is compiled."""

  whole: Any = protection.update

  def update(key, state, data, params, phase=None, arguments=None):
    del phase
    return whole(key, state, data, params, np.int32(only), arguments)

  return protection._replace(update=update)


def compile_round(problem: Problem) -> Program:
  """Compiles the round into the program that `rounds.resident` dispatches."""
  return problem.compiled.compile(problem.key, problem.state, problem.data, problem.params)


def lower_round(problem: Problem) -> Any:
  """Lowers the round without compiling it."""
  return problem.compiled.lower(problem.key, problem.state, problem.data, problem.params)
