"""Host shards: what is dealt out comes back, and never more than two items are on the devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from udp_jax.runtime import host_shards


@pytest.mark.parametrize(("num_batches", "num_shards"), [(1, 1), (4, 2), (5, 2), (7, 4), (3, 3)])
def test_what_is_dealt_out_comes_back(num_batches, num_shards):
  leaf = np.arange(num_batches * 6).reshape(num_batches, 2, 3)
  shards = host_shards.divide({"leaf": leaf}, num_shards)
  size = -(-num_batches // num_shards)
  assert [shard["leaf"].shape for shard in shards] == [(size, 2, 3)] * num_shards
  # A padded shard repeats its own first batch, not another shard's.
  for i, shard in enumerate(shards):
    own = leaf[i::num_shards]
    np.testing.assert_array_equal(shard["leaf"][: len(own)], own)
    np.testing.assert_array_equal(shard["leaf"][len(own) :], own[: size - len(own)])
  parts = [shard["leaf"] for shard in shards]
  np.testing.assert_array_equal(host_shards.gather(parts, num_batches), leaf)


def test_whole_shards_are_views():
  leaf = np.zeros((4, 2))
  shards = host_shards.divide(leaf, 2)
  assert all(np.shares_memory(shard, leaf) for shard in shards)


def test_halves_make_a_whole():
  tree = {"delta": np.ones(2), "weights": [np.zeros(3), np.ones(1)]}
  flags = {"delta": True, "weights": [False, False]}
  pictures = host_shards.select(tree, flags)
  shared = host_shards.select(tree, flags, wanted=False)
  assert len(jax.tree.leaves(pictures)) == 1 and len(jax.tree.leaves(shared)) == 2
  merged = host_shards.merge(pictures, shared)
  assert jax.tree.structure(merged) == jax.tree.structure(tree)
  assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(tree), strict=True))


class Output:
  """A device array that tells when it is asked for."""

  def __init__(self, number, events):
    self.number, self.events = number, events

  def copy_to_host_async(self):
    self.events.append(f"copy {self.number}")

  def __array__(self, dtype=None, copy=None):
    self.events.append(f"fetch {self.number}")
    return np.asarray(self.number)


def test_the_next_shard_is_put_while_one_runs():
  events = []

  def put(number):
    events.append(f"put {number}")
    return number

  def run(carry, number):
    events.append(f"run {number}")
    return carry + number, Output(number, events)

  carry, outputs = host_shards.pipelined([1, 2, 3], put, run, 0)
  assert carry == 6 and outputs == [1, 2, 3]
  expected = "put 1, run 1, copy 1, put 2, run 2, copy 2, fetch 1, put 3, run 3, copy 3, fetch 2"
  assert ", ".join(events) == f"{expected}, fetch 3"
