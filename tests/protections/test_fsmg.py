"""FSMG, whose surrogate is trained on clean pictures first."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.protections.fine_tuned import DATA, KEY, PARAMS, assert_same, build, run
from udp_jax import protections
from udp_jax.errors import ConfigError
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints


@pytest.fixture(scope="module")
def fsmg_run(gaussian_model):
  return run(build("fsmg", gaussian_model, warmup_rounds=2), 5)


def test_fsmg_trains_on_clean_pictures_first_and_then_no_more(fsmg_run, surrogate):
  states, infos = fsmg_run
  for state in states[:3]:
    assert not np.any(state.delta)
  trained = surrogate.init(KEY, PARAMS)
  for _ in range(2):
    trained, _ = surrogate.steps(stream(KEY, "train"), trained, DATA, None, PARAMS)
  assert trained.step == 6
  for state in states[2:]:
    assert_same(state.surrogate.params, trained.params)
  assert np.abs(trained.params["mean"]).max() > 0.05
  for info in infos[2:]:
    np.testing.assert_array_equal(info.train_loss, infos[1].train_loss)
  assert [bool(np.isnan(info.loss).all()) for info in infos] == [True, True, False, False, False]


def test_fsmg_attacks_what_it_trained(fsmg_run, gaussian_model):
  """From the warm-up on it is AdvDM against the surrogate."""
  states, _ = fsmg_run
  objective = negate(denoising(gaussian_model, timesteps.uniform(50)))
  inner = protections.pgd(objective, constraints.linf(6 / 255), protections.sign_descent(1 / 255))
  perturb = protections.over_batches(inner)
  deltas, update = perturb.init(KEY, DATA, None), jax.jit(perturb.update)
  for state in states[3:]:
    deltas, _ = update(stream(KEY, "perturb"), deltas, DATA, state.surrogate.params)
    np.testing.assert_allclose(state.delta, deltas.delta, atol=1e-6)
  assert np.abs(states[-1].delta).max() > 2.5 / 255


def test_fsmg_without_a_warm_up_is_another_method(gaussian_model):
  with pytest.raises(ConfigError, match="use advdm"):
    build("fsmg", gaussian_model, warmup_rounds=0)
