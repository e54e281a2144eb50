"""UDP on the best denoiser: its surrogate learns the pictures, and its pictures move away."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.protections.rounds import KEY, PICTURES
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.runtime import mesh
from udp_jax.stages.compiled_round import CompiledRound

DATA = batches.make_batches(PICTURES, 3)
OPTIONS = {"radius_255": 8, "step_size_255": 2}


def _rounds(model, count: int, **options):
  """The states after each round."""
  protection = protections.build("udp", model, OPTIONS | options)
  states = [jax.jit(protection.init)(KEY, DATA, None)]
  update = jax.jit(protection.update)
  for _ in range(count):
    states.append(update(KEY, states[-1], DATA, None)[0])
  return states


def test_pictures_move_within_the_budget_by_whole_steps(gaussian_model) -> None:
  states = _rounds(gaussian_model, 3, train_steps=2, perturb_steps=1)
  deltas = [255 * np.asarray(state.delta) for state in states]
  assert not deltas[0].any()
  # Sign steps from nowhere, of pictures that no step pushes out of range: whole multiples of two.
  for number, delta in enumerate(deltas):
    np.testing.assert_allclose(delta, 2 * np.round(delta / 2), atol=1e-3)
    assert np.abs(delta).max() <= 2 * number + 1e-3
  np.testing.assert_allclose(np.abs(deltas[1]), 2, atol=1e-3)


def test_the_surrogate_comes_to_know_the_pictures(gaussian_model) -> None:
  """In a round that only trains."""
  options = {"train_steps": 300, "warmup_rounds": 1, "learning_rate": 0.01}
  first, last = _rounds(gaussian_model, 1, **options)
  assert not np.asarray(last.delta).any()
  mean = 2 * PICTURES.mean(0) / 255 - 1
  before, after = (
    float(np.abs(np.asarray(state.surrogate.params["mean"]) - mean).mean())
    for state in (first, last)
  )
  assert after < 0.7 * before


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"joint_gradients": True, "warmup_rounds": 1}, "does not go with warmup_rounds or restart"),
    ({"joint_gradients": True, "restart_every": 2}, "does not go with warmup_rounds or restart"),
    ({"joint_gradients": True, "num_draws": 2}, "nor with num_draws"),
    ({"trains": "nothing"}, "nothing"),
    ({"weight_decay": 0.1}, "has no option 'weight_decay'"),
  ],
)
def test_what_does_not_go_together(options: dict, message: str, gaussian_model) -> None:
  with pytest.raises(ConfigError, match=message):
    protections.build("udp", gaussian_model, OPTIONS | options)


@pytest.mark.parametrize("options", [{"perturb_steps": 2}, {"joint_gradients": True}])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_udp_and_eudp_share_a_program(options: dict, num_shards: int, gaussian_model) -> None:
  """They differ in the timesteps alone, which the program takes as an argument."""
  given = OPTIONS | {"train_steps": 2} | options
  texts, arguments = [], []
  for name in ("udp", "eudp"):
    protection, _ = protections.build(name, gaussian_model, given).divided(num_shards)
    compiled = CompiledRound.of(protection, KEY, DATA, None, mesh.make_mesh())
    texts.append(compiled.lower(KEY, compiled.placed, DATA, None).as_text())
    arguments.append(protection.arguments())
  assert texts[0] == texts[1] and "func.func public @main" in texts[0]
  assert arguments[0].shape == (50,) and np.any(arguments[0] != arguments[1])


def test_an_argument_draws_what_a_constant_draws(gaussian_model) -> None:
  protection = protections.build("eudp", gaussian_model, OPTIONS | {"train_steps": 2})
  state = jax.jit(protection.init)(KEY, DATA, None)
  update = jax.jit(protection.update)
  constant, _ = update(KEY, state, DATA, None)
  given, _ = update(KEY, state, DATA, None, None, protection.arguments())
  jax.tree.map(np.testing.assert_array_equal, constant, given)
  other = protections.build("udp", gaussian_model, OPTIONS | {"train_steps": 2})
  moved, _ = update(KEY, state, DATA, None, None, other.arguments())
  expected, _ = jax.jit(other.update)(KEY, state, DATA, None)
  jax.tree.map(np.testing.assert_array_equal, moved, expected)
  assert np.any(np.asarray(moved.delta) != np.asarray(given.delta))
