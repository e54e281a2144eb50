"""The denoiser's stage, on functions whose results are known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from udp_jax.data import batches
from udp_jax.models.tokenizer import train_tokenizer
from udp_jax.objectives import training
from udp_jax.studies.tiny_ldm import denoiser


def test_encode_draws_from_the_moments(gaussian_model) -> None:
  model = denoiser.on_moments(gaussian_model, 0.5)
  mean, logvar = np.full((400, 4, 4, 2), 3.0), np.full((400, 4, 4, 2), np.log(0.25))
  moments = jnp.asarray(np.concatenate([mean, logvar], -1), jnp.float32)
  x0 = model.encode({}, moments, jax.random.split(jax.random.key(0), 400))
  assert float(x0.mean()) == pytest.approx(1.5, abs=0.02)
  assert float(x0.std()) == pytest.approx(0.25, abs=0.01)


def test_captions_are_drawn_and_dropped() -> None:
  captions = (("a car", "a photo of a car"), ("a horse", "a photo of a horse"))
  tokenizer = train_tokenizer([c for several in captions for c in several], 560)
  table = denoiser.caption_table(tokenizer, captions)
  assert table.shape == (3, 2, 77)
  np.testing.assert_array_equal(table[1, 0], tokenizer(["a horse"])[0])

  def token_ids(params, images, cond, keys):
    return cond, {}

  keys = jax.random.split(jax.random.key(0), 400)
  concepts = jnp.arange(400) % 2
  seen = {}
  for drop in (0.0, 0.25, 1.0):
    ids, _ = denoiser.captioned(token_ids, table, drop)({}, None, concepts, keys)
    seen[drop] = np.asarray(ids)
  empty = tokenizer([""])[0]
  dropped = (seen[0.25] == empty).all(-1)
  assert 0.17 < dropped.mean() < 0.33
  assert (seen[1.0] == empty).all()
  for concept, alternatives in enumerate(captions):
    got = {tuple(row) for row in seen[0.0][concept::2]}
    assert got == {tuple(row) for row in tokenizer(list(alternatives))}


def test_update_descends_on_floats() -> None:
  """Moments are no 8-bit pictures: they arrive at the objective as they are."""

  def objective(params, moments, cond, keys):
    return jnp.square(moments[:, 0, 0, 0] - params["guess"]), {}

  tx = optax.sgd(0.1)
  update = denoiser.make_update(objective, tx, ema_decay=0.5)
  moments = np.full((8, 1, 1, 2), -7.5, np.float32)
  data = batches.make_batches(moments, 4, cond=np.zeros(8, np.int32))
  state = training.init_state({"guess": jnp.zeros(())}, tx, ema=True)
  state, losses = training.train_steps(update, jax.random.key(0), state, data, 40)
  assert float(losses[0]) == pytest.approx(7.5**2)
  assert float(state.params["guess"]) == pytest.approx(-7.5, abs=0.01)
  assert float(state.params["guess"]) < float(state.ema_params["guess"]) < -7.0
