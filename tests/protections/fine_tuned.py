"""FSMG and ASPL on a model of a few numbers, and the surrogates that they train."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax import protections
from udp_jax.data import batches
from udp_jax.models.sampling import Sampling
from udp_jax.protections import surrogates
from udp_jax.protections.options import Game, Prior, Surrogate

KEY = jax.random.key(6)
PICTURES = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3)).astype(np.uint8)
PARAMS = {"mean": jnp.zeros((8, 8, 3)), "log_spread": jnp.full((3,), -1.0)}
DATA = batches.make_batches(PICTURES, 3)
TRAINING = {"train_steps": 3, "learning_rate": 0.05}


def build(name, model, **options):
  given = {"radius": 6 / 255, "step_size": 1 / 255} | TRAINING
  return protections.build(name, model, given | options)


def run(protection, rounds):
  """(states, infos) of all rounds; states from the start on."""
  states, infos = [jax.jit(protection.init)(KEY, DATA, PARAMS)], []
  update = jax.jit(protection.update)
  for _ in range(rounds):
    state, info = update(KEY, states[-1], DATA, PARAMS)
    states.append(state)
    infos.append(info)
  return states, infos


PRIOR = {"prior_weight": 2.0, "num_class_images": 5, "sample_steps": 4, "guidance_scale": 1.0}


def of(group, options):
  """A group of those of the flat options that are its fields."""
  names = {field.name for field in dataclasses.fields(group)}
  return group(**{name: value for name, value in options.items() if name in names})


def prior_of(model, **options):
  options = PRIOR | options
  return surrogates.preserved(model, of(Prior, options), of(Sampling, options))


def surrogate_of(model, prior=None, **options):
  options = TRAINING | options
  made = surrogates.fine_tuned(model, of(Game, options), of(Surrogate, options), prior)
  return made._replace(steps=jax.jit(made.steps))


def assert_same(first, second):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)
