"""FSMG, whose surrogate is trained on clean pictures first."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from tests.protections.fine_tuned import DATA, KEY, PARAMS, assert_same, build, run
from udp_jax import protections
from udp_jax.errors import ConfigError
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints, surrogates


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


@pytest.fixture
def clean_set(tmp_path):
  """Set A: four bright pictures in a folder, larger than the model's."""
  for number in range(4):
    bright = np.random.default_rng(number).integers(200, 256, (12, 12, 3), np.uint8)
    Image.fromarray(bright).save(tmp_path / f"{number}.png")
  return str(tmp_path)


@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_the_surrogate_trains_on_the_clean_set(name, gaussian_model, clean_set):
  """Its mean goes towards bright pictures, which are not among the protected ones."""
  options = {"train_steps": 6, "perturb_steps": 1, "clean_set": clean_set}
  states, _ = run(build(name, gaussian_model, **options), 1)
  plain, _ = run(build(name, gaussian_model, train_steps=6, perturb_steps=1), 1)
  if name == "fsmg":
    trained, on_own = (float(s[1].surrogate.params["mean"].mean()) for s in (states, plain))
    assert trained > on_own + 0.05
  else:
    # The copy alone sees set A; the surrogate trains on the protected pictures.
    means = [s[1].surrogate.params["mean"].mean() for s in (states, plain)]
    assert abs(means[0] - means[1]) < 0.02
    assert np.any(states[1].delta != plain[1].delta)


def test_the_clean_set_is_the_pictures_of_the_folder(gaussian_model, clean_set, surrogate):
  clean = surrogates.clean_pictures(clean_set, gaussian_model)
  assert clean.shape == (4, 8, 8, 3) and clean.min() >= 195
  arranged = surrogates.clean_batches(clean, DATA)
  assert arranged.images.shape == (2, 3, 8, 8, 3) and arranged.weight.sum() == 4
  states, _ = run(build("fsmg", gaussian_model, clean_set=clean_set), 1)
  expected, _ = surrogate.steps(
    stream(KEY, "train"), surrogate.init(KEY, PARAMS), arranged, None, PARAMS
  )
  assert_same(states[1].surrogate.params, expected.params)


def test_the_target_shift_reaches_delta(gaussian_model):
  plain, shifted = (
    run(build("fsmg", gaussian_model, **options), 2)[0][-1]
    for options in ({}, {"target": "pattern", "target_weight": 10.0})
  )
  assert_same(plain.surrogate.params, shifted.surrogate.params)
  assert np.any(np.sign(plain.delta) != np.sign(shifted.delta))
