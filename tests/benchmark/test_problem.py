"""The round that is raced: its phases, and what it is built of."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.benchmark import plan, problem
from udp_jax.protections.base import PERTURB, Protection


def test_phases_are_those_of_the_problem() -> None:
  assert plan.PHASES == tuple(problem.PHASES)


def test_a_program_of_one_phase_runs_that_whatever_it_is_asked_for() -> None:
  seen = []

  def update(key, state, data, params, phase=None, arguments=None):
    seen.append((key, state, data, params, phase, arguments))
    return state, None

  made = problem._of_phase(Protection(lambda *_: 0, update), problem.PHASES["max"])  # type: ignore
  made.update(1, 2, 3, 4, problem.PHASES["round"], 5)  # type: ignore
  made.update(1, 2, 3, 4)  # type: ignore
  assert seen == [(1, 2, 3, 4, PERTURB, 5), (1, 2, 3, 4, PERTURB, None)]
  # Known when the program is traced, so that the other phase is not part of it.
  assert isinstance(seen[0][4], np.int32)


def test_advdm_freezes_the_whole_model() -> None:
  sizes = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
  types = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
  unet = {**sizes, **types, "attention_head_dim": 2, "cross_attention_dim": 8, "sample_size": 8}
  vae = {**sizes, "block_out_channels": (8, 8)}
  performance = {"dtype": "bfloat16", "frozen_dtype": "bfloat16", "frozen_parts": ("unet", "vae")}
  spec = problem.Spec(unet, performance, 2, vae=vae, image_size=16, prompt_length=3, method="advdm")
  made = problem.build(spec)
  kernels = [leaf for leaf in jax.tree.leaves(made.params) if leaf.ndim > 1]
  assert {leaf.dtype for leaf in kernels} == {jnp.dtype(jnp.bfloat16)}
  update = functools.partial(made.protection.update, made.key)
  state, info = jax.eval_shape(update, made.state, made.data, made.params)
  assert info.loss.shape == (1, 2) and state.delta.shape == (1, 2, 16, 16, 3)
