"""Rounds of a protection: what compiling takes is measured and freed for each of them."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from udp_jax import parallel, protections, rounds, training

KEY = jax.random.key(5)


DELAYS_S = (0.2, 0.1)


@pytest.fixture
def collected(monkeypatch):
  """Times of collecting garbage, which takes 0.2 s the first time and 0.1 s the second."""
  collected = []

  def collect():
    collected.append(time.monotonic())
    time.sleep(DELAYS_S[len(collected) - 1])

  monkeypatch.setattr(rounds.gc, "collect", collect)
  return collected


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_every_row_of_a_process_says_what_compiling_it_took(
  gaussian_model, pictures, collected, kind
):
  """At the second call, too: nothing of the first one's clock may be remembered."""
  mesh = parallel.make_mesh(jax.devices()[:1])
  params = gaussian_model.init(jax.random.key(1))
  batches = training.make_batches(pictures, 4)
  for turn, least in enumerate(DELAYS_S, 1):
    protection = protections.build("random_noise", gaussian_model, {"radius": 8 / 255})
    options = {"shard_batches": 2} if kind == "streamed" else {}
    start = time.monotonic()
    made = getattr(rounds, kind)(
      protection, batches, len(pictures), key=KEY, params=params, mesh=mesh, **options
    )
    most = time.monotonic() - start
    assert len(collected) == turn
    found = made.advance(made.state, 0).metrics["compile_seconds"]
    assert least <= found <= most


def test_the_numbers_of_a_round_are_one_program(gaussian_model, pictures, monkeypatch):
  """Dispatched one by one, a dozen operations would be compiled and run apart."""
  traced = []

  class Watched:
    def __getattr__(self, name):
      return getattr(jnp, name)

    def square(self, x):
      traced.append(isinstance(x, jax.core.Tracer))
      return jnp.square(x)

  monkeypatch.setattr(rounds, "jnp", Watched())
  mesh = parallel.make_mesh(jax.devices()[:1])
  # A number of pictures of its own, so that no earlier test has compiled this.
  batches = training.make_batches(pictures[:6], 3)
  protection = protections.build("random_noise", gaussian_model, {"radius": 8 / 255})
  made = rounds.resident(protection, batches, 6, key=KEY, params=None, mesh=mesh)
  advance = made.advance(made.state, 0)
  made.advance(advance.state, 1)
  assert traced == [True]
