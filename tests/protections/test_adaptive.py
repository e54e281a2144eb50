"""The transforms that adaptive protections expect, and the two options themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _cli
from tests.protections.rounds import DATA, KEY, PARAMS, blocks, build, deltas
from udp_jax import protections, registry
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.objectives import latent, transforms
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.objectives.transforms import over_transforms
from udp_jax.ops import image, timesteps
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections import adaptive, targets
from udp_jax.protections.options import Adaptive
from udp_jax.studies import rows


def adapted(model, objective, **options):
  return adaptive.adapted(model, objective, Adaptive(**options))


KEYS = example_keys(jax.random.key(4), 0, np.arange(24))
CONTROLS = ("matched_noise", "random_noise", "shuffled_delta")
# Methods that are about transforms.
EXPECTING = {"metacloak": "blur_and_flip"}


@pytest.fixture(scope="module")
def images():
  """A smooth picture that reaches black and white, 24 times."""
  y, x, c = np.mgrid[:16, :12, :3]
  picture = 0.5 + 0.6 * np.sin(0.5 * x + 0.3 * y + c)
  return jnp.asarray(np.repeat(np.clip(picture, 0, 1)[None], 24, axis=0), jnp.float32)


@pytest.fixture(scope="module", params=transforms.TRANSFORMS)
def transformed(request, images):
  transform = jax.jit(transforms.TRANSFORMS[request.param])
  return request.param, transform, transform(KEYS, images)


def test_transforms_stay_pictures_and_draw_by_the_pictures_key(transformed, images):
  name, transform, moved = transformed
  assert moved.shape == images.shape and moved.dtype == jnp.float32
  assert moved.min() >= 0 and moved.max() <= 1 + 1e-6  # Weights of a blur add up to nearly 1.
  different = np.abs(np.asarray(moved - images)).max((1, 2, 3)) > 0
  assert different.all() != (name == "identity") and different.any() != (name == "identity")
  if name != "identity":
    assert len(np.unique(np.asarray(moved).round(4), axis=0)) > 3
  shuffled = transform(KEYS[::-1], images)
  np.testing.assert_allclose(shuffled[::-1], moved, atol=1e-6)


def test_transforms_have_gradients(transformed, images):
  name, transform, _ = transformed
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(transform(KEYS[:4], x) ** 2)))
  found = gradient(0.2 + 0.6 * images[:4])
  assert np.isfinite(found).all()
  assert (np.abs(found).max((1, 2, 3)) > 0.1).all(), name


def test_resize_is_there_and_back(images):
  moved = jax.jit(transforms.TRANSFORMS["resize"])(KEYS, images)

  @jax.jit
  def by_every_scale(picture):
    found = []
    for scale in transforms.SCALES:
      small = image.resize(picture, (round(16 * scale), round(12 * scale)), method="cubic")
      found.append(jnp.clip(image.resize(small, (16, 12), method="cubic")[0], 0, 1))
    return jnp.stack(found)

  expected = np.asarray(by_every_scale(images[:1]))
  distance = np.abs(np.asarray(moved)[:, None] - expected).max((2, 3, 4))
  np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
  assert set(distance.argmin(1)) == set(range(len(transforms.SCALES)))


def test_noise_and_blur_are_as_strong_as_the_table_says():
  keys = example_keys(jax.random.key(4), 0, np.arange(200))
  grey = jnp.full((200, 16, 16, 3), 0.5)
  spread = np.asarray(jax.jit(transforms.TRANSFORMS["noise"])(keys, grey)).std((1, 2, 3))
  assert 0 < spread.min() < 0.01 and 0.09 < spread.max() < 0.11
  point = jnp.zeros((200, 16, 16, 3)).at[:, 8, 8].set(1.0)
  centre = np.asarray(jax.jit(transforms.TRANSFORMS["blur"])(keys, point))[:, 8, 8, 0]
  # A narrow blur leaves the point, the widest 1 / (2 pi sigma^2) of it.
  assert centre.max() > 0.9 and 0.07 < centre.min() < 0.08


def test_parse():
  found = transforms.parse("jpeg, identity")
  assert found == (transforms.TRANSFORMS["jpeg"], transforms.TRANSFORMS["identity"])
  for names in ("jpeg,swirl", "swirl"):
    with pytest.raises(ConfigError, match="unknown transform 'swirl'; known: identity, jpeg, res"):
      transforms.parse(names)
  with pytest.raises(ConfigError, match="unknown transform ''"):
    transforms.parse("jpeg,")


def first_value(params, images, cond, keys):
  return images[:, 0, 0, 0], {"seen": images}


def test_adapted_adds_what_is_asked_for(latent_model):
  pictures = jax.random.uniform(jax.random.key(1), (24, 8, 8, 3))
  assert adapted(latent_model, first_value) is first_value
  plain = adapted(latent_model, first_value, transforms="identity")
  np.testing.assert_array_equal(plain(None, pictures, None, KEYS)[0], pictures[:, 0, 0, 0])
  weighted = adapted(latent_model, first_value, consistency_weight=2.5)
  lost, _ = latent.consistency(latent_model)(None, pictures, None, KEYS)
  losses, _ = weighted(None, pictures, None, KEYS)
  np.testing.assert_allclose(losses, pictures[:, 0, 0, 0] + 2.5 * lost, rtol=1e-5)
  # The picture that is made consistent is the one that is saved, not a transformed one.
  both = adapted(latent_model, first_value, transforms="noise", consistency_weight=2.5)
  losses, aux = both(None, pictures, None, KEYS)
  np.testing.assert_allclose(losses, aux["seen"][:, 0, 0, 0] + 2.5 * lost, rtol=1e-5)
  assert np.abs(aux["seen"] - pictures).max() > 0.01


def test_options_that_cannot_be_used(latent_model, gaussian_model):
  with pytest.raises(ConfigError, match="consistency_weight must not be negative, got -1"):
    adapted(latent_model, first_value, consistency_weight=-1)
  with pytest.raises(ConfigError, match="a consistency term needs a latent diffusion model"):
    adapted(gaussian_model, first_value, consistency_weight=1)


# What `sds_z` moves are latents, which no transform takes.
@pytest.mark.parametrize(
  "name", [n for n in protections.available() if n not in (*CONTROLS, "sds_z")]
)
def test_every_method_has_an_adaptive_form(name, latent_model):
  """Both options reach the objective: they are refused, or traced into the round."""
  known = registry.fields(registry.constructor("udp_jax.protections", name))
  assert known["transforms"].default == EXPECTING.get(name, "")
  assert known["consistency_weight"].default == 0
  required = {n: 0.03 for n, field in known.items() if field.default is registry.REQUIRED}
  required |= {"perceptual": ""} if "perceptual" in known else {}
  with pytest.raises(ConfigError, match="unknown transform 'swirl'"):
    protections.build(name, latent_model, required | {"transforms": "swirl"})
  with pytest.raises(ConfigError, match="consistency_weight must not be negative"):
    protections.build(name, latent_model, required | {"consistency_weight": -1.0})


@pytest.mark.parametrize("name", ["advdm", "mist", "sds"])
def test_a_step_follows_the_mean_of_its_draws_gradients(name, latent_model):
  """Each draw's gradient is computed by itself, with the key that it has in `averaged`."""
  uniform = timesteps.uniform(50)
  objective = {
    "advdm": negate(denoising(latent_model, uniform)),
    "mist": negate(denoising(latent_model, uniform)),
    "sds": latent.sds(latent_model, uniform),
  }[name]
  options = {"start": "zero", "num_draws": 4} | ({"kind": "semantic"} if name == "mist" else {})
  found = deltas(build(name, latent_model, **options), 1)[1]
  keys = jax.vmap(lambda ids: example_keys(KEY, 0, ids))(DATA.ids)

  @jax.jit
  @jax.vmap
  def gradient(images, keys):
    return jax.grad(lambda seen: objective(PARAMS, seen, None, keys)[0].sum())(images)

  def numbered(number):
    fold = lambda key: jax.random.fold_in(stream(key, "draws"), number)
    return jax.vmap(jax.vmap(fold))(keys)

  each = [gradient(to_float(DATA.images), numbered(number)) for number in range(4)]
  mean = np.mean(each, axis=0)
  sure = np.abs(mean) > 1e-3 * np.abs(mean).max()
  np.testing.assert_array_equal(np.sign(found)[sure], -np.sign(mean)[sure])
  assert sure.mean() > 0.9
  assert np.mean(np.sign(each[0])[sure] == np.sign(mean)[sure]) < 1  # One draw goes elsewhere.


@pytest.mark.parametrize("name", ["udp", "eudp"])
def test_the_game_takes_the_draws_of_its_config(name, gaussian_model, monkeypatch):
  config = _cli.get_config("eudp", "demo_pixels")
  config.protections[name].num_draws = 4  # The field is there: `--config.protections...` sets it.
  options = dict(rows.settings(config, name).options)
  taken = []

  def spy(model, objective, adaptive):
    taken.append(adaptive.num_draws)
    return objective

  monkeypatch.setattr("udp_jax.protections.udp.adapted", spy)
  protections.build(name, gaussian_model, options)
  assert taken and set(taken) == {4}


def test_draws_are_averaged_by_every_method(gaussian_model):
  """AdvDM for all: `adapted` is where the option is used."""
  options = {"radius_255": 8, "step_size_255": 2}
  data = batches.make_batches(np.full((2, 8, 8, 3), 100, np.uint8), 2)
  params = gaussian_model.init(jax.random.key(0))
  losses = []
  for draws in (1, 1, 3):
    method = protections.build("advdm", gaussian_model, options | {"num_draws": draws})
    state = method.init(jax.random.key(1), data, params)
    losses.append(jax.jit(method.update)(jax.random.key(1), state, data, params)[1].loss)
  np.testing.assert_array_equal(losses[0], losses[1])
  assert np.all(losses[0] != losses[2])


def test_consistency_leaves_a_picture_that_the_autoencoder_gives_back(latent_model):
  """With a large weight, what averages lose goes out of the protected picture."""

  def lost(delta):
    moved = np.asarray(to_float(DATA.images)) + delta
    return np.square(moved - blocks(moved)).mean()

  options = {"target": "grey", "start": "zero"}
  plain = deltas(build("photoguard_encoder", latent_model, **options), 6)
  options |= {"consistency_weight": 1e4}
  consistent = deltas(build("photoguard_encoder", latent_model, **options), 6)
  np.testing.assert_allclose(lost(plain[-1]), lost(plain[0]), rtol=1e-4)
  assert lost(consistent[-1]) < 0.9 * lost(plain[0])


# Its parts are tested above, and in tests/objectives/test_transforms.py and test_denoising.py.
@pytest.mark.slow
def test_what_is_expected_survives_what_is_expected(latent_model):
  """Delta that expects transforms keeps more of its effect under them than one that does not."""
  options, names = {"target": "pattern", "start": "zero"}, "blur,resize"
  plain = deltas(build("photoguard_encoder", latent_model, **options), 6)[-1]
  options |= {"transforms": names}
  expecting = deltas(build("photoguard_encoder", latent_model, **options), 6)[-1]
  picture = targets.picture("pattern", (8, 8, 3))
  distance = latent.latent_distance(latent_model, picture)
  expected = over_transforms(distance, transforms.parse(names), 30)
  keys = example_keys(jax.random.key(99), 0, DATA.ids.reshape(-1))

  @jax.jit
  def left(delta):
    moved = (DATA.images / np.float32(255) + delta).reshape(-1, 8, 8, 3)
    return jnp.mean(expected(PARAMS, moved, None, keys)[0])

  clean = left(np.zeros_like(plain))
  assert left(expecting) < left(plain) < clean
