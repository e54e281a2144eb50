"""Streams of keys: what a draw depends on, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops import keys as keys_lib

KEY = jax.random.key(3)


def bits(keys) -> np.ndarray:
  return np.asarray(jax.random.key_data(keys))


def test_streams_are_named_and_reproducible():
  names = ["shuffle", "draws", "train", "perturb", "surrogate", "start"]
  data = {name: tuple(bits(keys_lib.stream(KEY, name))) for name in names}
  assert len(set(data.values())) == len(names)
  assert data["train"] == tuple(bits(keys_lib.stream(KEY, "train")))
  assert data["train"] != tuple(bits(keys_lib.stream(jax.random.key(4), "train")))


def test_a_pictures_key_depends_on_its_number_and_the_step_alone():
  together = bits(keys_lib.example_keys(KEY, 5, np.arange(10)))
  alone = bits(keys_lib.example_keys(KEY, 5, np.array([7])))
  shuffled = bits(keys_lib.example_keys(KEY, 5, np.array([9, 7, 0])))
  np.testing.assert_array_equal(alone[0], together[7])
  np.testing.assert_array_equal(shuffled, together[[9, 7, 0]])
  assert len(np.unique(together, axis=0)) == 10
  assert (bits(keys_lib.example_keys(KEY, 6, np.arange(10))) != together).any(axis=1).all()


def test_a_traced_step_gives_the_keys_of_a_plain_one():
  ids = np.arange(3)
  traced = jax.jit(lambda step: keys_lib.example_keys(KEY, step, ids))(jnp.int32(5))
  np.testing.assert_array_equal(bits(traced), bits(keys_lib.example_keys(KEY, 5, ids)))


def test_split_each_splits_every_key_by_itself():
  keys = keys_lib.example_keys(KEY, 0, np.arange(4))
  parts = keys_lib.split_each(keys, 3)
  assert len(parts) == 3
  for i in range(4):
    expected = bits(jax.random.split(keys[i], 3))
    np.testing.assert_array_equal([bits(part[i]) for part in parts], expected)


def test_normal_each_draws_one_picture_a_key():
  keys = keys_lib.example_keys(KEY, 0, np.arange(200))
  draws = np.asarray(keys_lib.normal_each(keys, (5, 4)))
  assert draws.shape == (200, 5, 4)
  np.testing.assert_array_equal(draws[17], jax.random.normal(keys[17], (5, 4)))
  # 4000 independent standard normals: four standard errors of the mean and of the variance.
  assert abs(draws.mean()) < 4 / np.sqrt(draws.size)
  assert abs(draws.var() - 1) < 4 * np.sqrt(2 / draws.size)
