"""Metrics that run the model compute in the highest precision, whatever the model's setting is."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from udp_jax.metrics import denoising, diffusion_classifier, latents
from udp_jax.models import pipeline
from udp_jax.objectives import denoising as objectives
from udp_jax.ops import timesteps
from udp_jax.runtime import mesh

IDS = jax.ShapeDtypeStruct((2,), jnp.int32)
SEED = {"seed": 0, "draws": 2}


@pytest.fixture(scope="module")
def model(tiny_pipeline):
  """A latent model as it would be on a GPU, with products less precise than a metric's."""
  settings = {"backend": "gpu", "precision": "tf32"}
  return pipeline.build_model(
    tiny_pipeline.configs, tiny_pipeline.scheduler, settings, deterministic=True
  )


def _arrays(model) -> tuple:
  params = jax.eval_shape(model.init, jax.random.key(0))
  images = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.uint8)
  token_ids = jax.ShapeDtypeStruct((2, 6), jnp.int32)
  return params, images, jax.eval_shape(model.embed, params, token_ids)


def _held_out(model):
  params, images, cond = _arrays(model)
  made = denoising.DenoisingLoss(model, **SEED, per_device_batch_size=2, mesh=mesh.make_mesh())
  return made._mean_loss, (params, images, IDS, cond)


def _draws(model):
  params, images, cond = _arrays(model)
  objective = objectives.denoising(model, timesteps.uniform(model.schedule.num_steps))
  total = denoising.over_draws(objective, jax.random.key(0), 2, jnp.sum)
  return jax.jit(total), (params, images, IDS, cond)


def _codes(model):
  made = latents.Latents(model, per_device_batch_size=2, mesh=mesh.make_mesh())
  return made._encode, _arrays(model)[:2]


def _reconstruction(model):
  made = latents.Latents(model, per_device_batch_size=2, mesh=mesh.make_mesh())
  params, images, _ = _arrays(model)
  codes = jax.ShapeDtypeStruct((2, *model.shape), jnp.float32)
  return made._error, (params, images, codes)


def _classified(model):
  params, images, cond = _arrays(model)
  made = diffusion_classifier.DiffusionClassifier(
    model, **SEED, per_device_batch_size=2, mesh=mesh.make_mesh()
  )
  which = jax.ShapeDtypeStruct((2, 2), jnp.int32)
  return made._summed, (params, images, IDS, which, cond, jnp.arange(2))


def _precisions(function: Callable, arrays: tuple) -> set[str]:
  text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  kinds = ("stablehlo.dot_general", "stablehlo.convolution")
  lines = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
  assert len(lines) > 3
  return {
    name
    for line in lines
    for name in re.findall(r"\b(DEFAULT|HIGHEST|HIGH)\b", line) or ["DEFAULT"]
  }


@pytest.mark.parametrize("made", [_held_out, _draws, _codes, _reconstruction, _classified])
def test_a_metric_is_always_precise(made: Callable, model) -> None:
  assert _precisions(*made(model)) == {"HIGHEST"}


def test_what_is_no_metric_has_the_models_precision(model) -> None:
  params, images, _ = _arrays(model)
  images = jax.ShapeDtypeStruct(images.shape, jnp.float32)
  encode = lambda params, images: model.encode(params, images, None)
  assert _precisions(encode, (params, images)) == {"DEFAULT"}
