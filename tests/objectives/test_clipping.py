"""Clipping by the global norm: optax's numbers and state, and few kernels on GPUs."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from udp_jax.objectives import clipping

SHAPES = {
  "conv": (3, 3, 16, 32),
  "narrow": (3, 3, 3, 8),
  "dense": (64, 96),
  "bias": (32,),
  "scalar": (),
}


def draw(scale: float = 1.0) -> dict[str, jax.Array]:
  generator = np.random.default_rng(3)
  drawn = {name: generator.normal(size=shape, scale=scale) for name, shape in SHAPES.items()}
  return {name: jnp.asarray(each, jnp.float32) for name, each in drawn.items()}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_on_this_backend_it_is_optax(scale):
  ours, theirs = clipping.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
  gradients = draw(scale)
  assert ours.init(gradients) == theirs.init(gradients)
  found, expected = (
    jax.jit(lambda g, one=one: one.update(g, one.init(g))[0])(gradients) for one in (ours, theirs)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  norm = float(optax.tree.norm(found))
  assert norm == pytest.approx(min(1.0, float(optax.tree.norm(gradients))), rel=1e-5)


@pytest.mark.parametrize("clip", [clipping.clip_by_global_norm, optax.clip_by_global_norm])
def test_states_of_either_can_be_read_by_the_other(clip):
  tx = optax.chain(clip(1.0), optax.adam(1e-3))
  other = optax.chain(clipping.clip_by_global_norm(1.0), optax.adam(1e-3))
  state = tx.init(draw())
  assert jax.tree.structure(state) == jax.tree.structure(other.init(draw()))
  other.update(draw(), state)


def test_the_joined_norm_is_the_norm():
  gradients = draw()
  wide = [np.asarray(each, np.float64).ravel() for each in gradients.values()]
  expected = np.linalg.norm(np.concatenate(wide))
  assert float(clipping.joined_norm(gradients)) == pytest.approx(expected, rel=1e-6)
  with_more = gradients | {"bias": gradients["bias"] + 1.0}
  assert float(clipping.joined_norm(with_more)) != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("platform", "joined"), [("cuda", 1), ("cpu", 0), ("tpu", 0)])
def test_arrays_are_joined_on_nvidia_s_gpus_alone(platform, joined):
  """There each large array is summed once to a vector, and all of them together once."""
  clip = clipping.clip_by_global_norm(1.0)
  traced = jax.jit(lambda g: clip.update(g, optax.EmptyState())[0]).trace(draw())
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert len(re.findall(r"stablehlo\.concatenate", text)) == joined
  assert len(re.findall(r"stablehlo\.optimization_barrier", text)) == joined
  # The scalar is summed by optax too, but over no axis.
  sums = len(re.findall(r"stablehlo\.reduce\(", text))
  assert sums == (3 if joined else 5)


def test_a_norm_of_zero_clips_nothing_and_has_the_same_state():
  gradients, none = draw(1e3), clipping.clip_by_global_norm(0.0)
  state = none.init(gradients)
  assert jax.tree.structure(state) == jax.tree.structure(optax.clip_by_global_norm(1.0).init({}))
  jax.tree.map(np.testing.assert_array_equal, none.update(gradients, state)[0], gradients)
