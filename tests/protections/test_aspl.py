"""A round of ASPL by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.fine_tuned import DATA, KEY, PARAMS, PRIOR, assert_same, build, run
from udp_jax import protections
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints


@pytest.mark.slow
@pytest.mark.parametrize(
  "prior",
  [pytest.param({}, id="alone"), pytest.param(PRIOR, id="prior")],
)
def test_aspl_round_by_hand(gaussian_model, prior, surrogate, beside_class, class_images):
  """Copy and train on clean, perturb against the copy, train on protected; optimisers afresh."""
  states, infos = run(build("aspl", gaussian_model, perturb_steps=2, **prior), 2)
  assert surrogate.class_images(KEY, DATA, PARAMS) is None
  surrogate, of_class = (beside_class, class_images) if prior else (surrogate, None)
  objective = negate(denoising(gaussian_model, timesteps.uniform(50)))
  inner = protections.pgd(objective, constraints.linf(6 / 255), protections.sign_descent(1 / 255))
  perturb = protections.over_batches(inner, num_steps=2)
  deltas, theta, step = perturb.init(KEY, DATA, None), PARAMS, 0
  update = jax.jit(perturb.update)
  for state, info in zip(states[1:], infos, strict=True):
    fresh = surrogate.init(KEY, theta)._replace(step=jnp.int32(step))
    copy, _ = surrogate.steps(stream(KEY, "copy"), fresh, DATA, None, PARAMS, of_class)
    deltas, _ = update(stream(KEY, "perturb"), deltas, DATA, copy.params)
    trained, losses = surrogate.steps(
      stream(KEY, "train"), fresh, DATA, deltas.delta, PARAMS, of_class
    )
    theta, step = trained.params, int(trained.step)
    np.testing.assert_allclose(state.delta, deltas.delta, atol=1e-6)
    assert_same(state.surrogate.params, theta)
    np.testing.assert_allclose(info.train_loss, losses, rtol=1e-5)
    assert state.surrogate.opt_state == () and state.surrogate.step == step
  assert step == 6 and np.abs(deltas.delta).max() > 2.5 / 255
  assert np.abs(copy.params["mean"] - theta["mean"]).max() > 1e-3
