"""The parts of both stages, on functions whose results are known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.configs import latent
from udp_jax import training
from udp_jax.errors import ConfigError
from udp_jax.ldm import autoencoder, denoiser, run
from udp_jax.models.tokenizer import train_tokenizer


class _Codec:
  """Keeps every other pixel: a stand-in for an autoencoder whose errors can be worked out."""

  def __init__(self, logvar: float = -30.0):
    self.logvar = logvar

  def apply(self, variables, x, method):
    del variables
    if method == "encode":
      mean = x[:, ::2, ::2]
      return mean, jnp.full_like(mean, self.logvar)
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _loss(pictures, codec=None, **weights):
  objective = autoencoder.reconstruction(codec or _Codec(), **weights)
  return objective({}, jnp.asarray(pictures), None, jax.random.split(jax.random.key(0), 1))


def test_reconstruction_loss_of_known_errors() -> None:
  flat = np.full((1, 4, 4, 3), 0.75, np.float32)  # 0.5 in the model's range
  losses, aux = _loss(flat, gradient_weight=1.0, kl_weight=0.0)
  np.testing.assert_allclose(losses, 0.0, atol=1e-5)
  # KL of N(0.5, exp(-30)) from N(0, 1).
  np.testing.assert_allclose(aux["kl"], 0.5 * (0.25 - 1.0 + 30.0), rtol=1e-5)
  weighted, _ = _loss(flat, gradient_weight=1.0, kl_weight=0.1)
  np.testing.assert_allclose(weighted, 0.1 * aux["kl"], rtol=1e-4)
  # Columns of 0 and 1: every second column is off by 2, every difference along a row as well.
  stripes = np.zeros((1, 4, 4, 3), np.float32)
  stripes[:, :, 1::2] = 1.0
  losses, aux = _loss(stripes, gradient_weight=0.5, kl_weight=0.0)
  np.testing.assert_allclose(aux["l1"], 1.0, atol=1e-5)
  np.testing.assert_allclose(losses, 1.0 + 0.5 * 2.0, atol=1e-4)


def test_scaling_factor_gives_latents_unit_variance() -> None:
  generator = np.random.default_rng(0)
  mean = 3.0 * generator.normal(size=(50, 8, 8, 2)) + 1.0
  moments = np.concatenate([mean, np.full_like(mean, np.log(4.0))], -1).astype(np.float32)
  latents = mean + 2.0 * generator.normal(size=mean.shape)
  factor = autoencoder.scaling_factor(moments)
  assert np.std(factor * latents) == pytest.approx(1.0, abs=0.02)


def test_batches_of_one_size_whatever_the_count() -> None:
  sizes = set()

  def double(part):
    sizes.add(len(part))
    return 2 * part

  rows = np.arange(7)
  np.testing.assert_array_equal(autoencoder._by_batches(double, rows, 3), 2 * rows)
  assert sizes == {3}


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
  data = training.make_batches(moments, 4, cond=np.zeros(8, np.int32))
  state = training.init_state({"guess": jnp.zeros(())}, tx, ema=True)
  state, losses = training.train_steps(update, jax.random.key(0), state, data, 40)
  assert float(losses[0]) == pytest.approx(7.5**2)
  assert float(state.params["guess"]) == pytest.approx(-7.5, abs=0.01)
  assert float(state.params["guess"]) < float(state.ema_params["guess"]) < -7.0


def test_figures_show_some_of_each_concept() -> None:
  concepts = np.array([0] * 50 + [1] * 3 + [-1] * 20)
  shown = run._some_of_each(concepts, 9, seed=0)
  assert sorted(concepts[shown].tolist()) == [-1] * 3 + [0] * 3 + [1] * 3
  assert len(set(run._some_of_each(concepts, 73, seed=0).tolist())) == 73


def test_a_folder_belongs_to_one_config(tmp_path) -> None:
  config = latent.training("test")
  run._check_config(config, tmp_path)
  config.performance.steps_per_call = 3  # Changes nothing that is learned.
  run._check_config(config, tmp_path)
  config.denoiser.train_steps = 7
  with pytest.raises(ConfigError, match=r"another config \(denoiser differ\)"):
    run._check_config(config, tmp_path)
