"""Rounds of a protection: what compiling takes is measured and freed for each of them."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from udp_jax import protections
from udp_jax.data import batches as batches_lib
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.stages import rounds
from udp_jax.stages.records import Run

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
  gaussian_model, pictures, collected, kind, tmp_path
):
  """At the second call, too: nothing of the first one's clock may be remembered."""
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  params = gaussian_model.init(jax.random.key(1))
  batches = batches_lib.make_batches(pictures, 4)
  for turn, least in enumerate(DELAYS_S, 1):
    protection = protections.build("random_noise", gaussian_model, {"radius": 8 / 255})
    shard_batches = 2 if kind == "streamed" else 0
    run = Run(mesh, tmp_path, KEY, "protect", shard_batches=shard_batches)
    start = time.monotonic()
    made = rounds.made(protection, batches, len(pictures), params, run)
    most = time.monotonic() - start
    assert len(collected) == turn
    found = made.advance(made.state, 0).metrics["compile_seconds"]
    assert least <= found <= most


def test_the_numbers_of_a_round_are_one_program(gaussian_model, pictures, monkeypatch, tmp_path):
  """Dispatched one by one, a dozen operations would be compiled and run apart."""
  traced = []

  class Watched:
    def __getattr__(self, name):
      return getattr(jnp, name)

    def square(self, x):
      traced.append(isinstance(x, jax.core.Tracer))
      return jnp.square(x)

  monkeypatch.setattr(rounds, "jnp", Watched())
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  # A number of pictures of its own, so that no earlier test has compiled this.
  batches = batches_lib.make_batches(pictures[:6], 3)
  protection = protections.build("random_noise", gaussian_model, {"radius": 8 / 255})
  made = rounds.resident(protection, batches, 6, None, Run(mesh, tmp_path, KEY, "protect"))
  advance = made.advance(made.state, 0)
  made.advance(advance.state, 1)
  assert traced == [True]
