"""EUDP is UDP with other timesteps in its perturb steps."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.protections.rounds import KEY, PICTURES
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.ops import timesteps
from udp_jax.protections import eudp, udp

DATA = batches.make_batches(PICTURES, 3)
OPTIONS = {
  "radius": 8 / 255,
  "step_size": 2 / 255,
  "train_steps": 2,
  "perturb_steps": 1,
  "start": "sign",
}


def _delta(name: str, model, **options) -> np.ndarray:
  protection = protections.build(name, model, OPTIONS | options)
  state = jax.jit(protection.init)(KEY, DATA, None)
  state, _ = jax.jit(protection.update)(KEY, state, DATA, None)
  return np.asarray(state.delta)


@pytest.mark.slow
def test_without_powers_it_is_udp(gaussian_model) -> None:
  plain = _delta("udp", gaussian_model)
  np.testing.assert_array_equal(_delta("eudp", gaussian_model, a=0.0, b=0.0), plain)
  assert np.any(_delta("eudp", gaussian_model, a=2.0) != plain)


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.0), (0.5, 1.5)])
def test_the_powers_of_the_schedule(a: float, b: float, gaussian_model, monkeypatch) -> None:
  seen = {}
  monkeypatch.setattr(eudp, "udp", lambda model, **options: seen.update(options))
  eudp.eudp(gaussian_model, radius=0.1, step_size=0.1, a=a, b=b)
  abar = np.asarray(gaussian_model.schedule.alphas_cumprod, np.float64)
  weights = abar**a * (1 - abar) ** b
  np.testing.assert_allclose(seen["probs"], weights / weights.sum(), rtol=1e-4)
  assert seen["radius"] == seen["step_size"] == 0.1


def test_the_surrogate_learns_on_uniform_timesteps(gaussian_model, monkeypatch) -> None:
  made = []
  monkeypatch.setattr(udp, "denoising", lambda model, probs, **_: made.append(np.asarray(probs)))
  for kind in ("negate", "adapted", "bilevel"):
    monkeypatch.setattr(udp, kind, lambda *_, **__: None)
  monkeypatch.setattr(udp, "pgd", lambda *_, **__: None)
  monkeypatch.setattr(udp, "divisible", lambda make, rounds: make(rounds))
  monkeypatch.setattr(udp, "taking", lambda make, probs: make(probs))
  eudp.eudp(gaussian_model, radius=0.1, step_size=0.1, a=2.0)
  attacked, learned = made
  np.testing.assert_allclose(learned, timesteps.uniform(50))
  assert attacked[0] > 2 * attacked[-1]
