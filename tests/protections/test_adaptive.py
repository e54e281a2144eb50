"""The transforms that adaptive protections expect, and the two options themselves."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import lookup, objectives_latent, protections
from udp_jax.errors import ConfigError
from udp_jax.ops import image
from udp_jax.protections import adaptive
from udp_jax.randomness import example_keys

KEYS = example_keys(jax.random.key(4), 0, np.arange(24))
CONTROLS = ("matched_noise", "random_noise", "shuffled_delta")


@pytest.fixture(scope="module")
def images():
  """A smooth picture that reaches black and white, 24 times."""
  y, x, c = np.mgrid[:16, :12, :3]
  picture = 0.5 + 0.6 * np.sin(0.5 * x + 0.3 * y + c)
  return jnp.asarray(np.repeat(np.clip(picture, 0, 1)[None], 24, axis=0), jnp.float32)


@pytest.fixture(scope="module", params=adaptive.TRANSFORMS)
def transformed(request, images):
  transform = jax.jit(adaptive.TRANSFORMS[request.param])
  return request.param, transform, transform(KEYS, images)


def test_transforms_stay_pictures_and_draw_by_the_pictures_key(transformed, images):
  name, transform, moved = transformed
  assert moved.shape == images.shape and moved.dtype == jnp.float32
  assert moved.min() >= 0 and moved.max() <= 1
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
  moved = jax.jit(adaptive.TRANSFORMS["resize"])(KEYS, images)

  @jax.jit
  def by_every_scale(picture):
    found = []
    for scale in adaptive.SCALES:
      small = image.resize(picture, (round(16 * scale), round(12 * scale)), method="cubic")
      found.append(jnp.clip(image.resize(small, (16, 12), method="cubic")[0], 0, 1))
    return jnp.stack(found)

  expected = np.asarray(by_every_scale(images[:1]))
  distance = np.abs(np.asarray(moved)[:, None] - expected).max((2, 3, 4))
  np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
  assert set(distance.argmin(1)) == set(range(len(adaptive.SCALES)))


def test_noise_and_blur_are_as_strong_as_the_table_says():
  keys = example_keys(jax.random.key(4), 0, np.arange(200))
  grey = jnp.full((200, 16, 16, 3), 0.5)
  spread = np.asarray(jax.jit(adaptive.TRANSFORMS["noise"])(keys, grey)).std((1, 2, 3))
  assert 0 < spread.min() < 0.01 and 0.09 < spread.max() < 0.11
  point = jnp.zeros((200, 16, 16, 3)).at[:, 8, 8].set(1.0)
  centre = np.asarray(jax.jit(adaptive.TRANSFORMS["blur"])(keys, point))[:, 8, 8, 0]
  # A narrow blur leaves the point, the widest 1 / (2 pi sigma^2) of it.
  assert centre.max() > 0.9 and 0.07 < centre.min() < 0.08


def test_parse():
  found = adaptive.parse("jpeg, identity")
  assert found == (adaptive.TRANSFORMS["jpeg"], adaptive.TRANSFORMS["identity"])
  for names in ("jpeg,swirl", "swirl"):
    with pytest.raises(ConfigError, match="unknown transform 'swirl'; known: identity, jpeg, res"):
      adaptive.parse(names)
  with pytest.raises(ConfigError, match="unknown transform ''"):
    adaptive.parse("jpeg,")


def first_value(params, images, cond, keys):
  return images[:, 0, 0, 0], {"seen": images}


def test_adapted_adds_what_is_asked_for(latent_model):
  pictures = jax.random.uniform(jax.random.key(1), (24, 8, 8, 3))
  assert adaptive.adapted(latent_model, first_value) is first_value
  plain = adaptive.adapted(latent_model, first_value, transforms="identity")
  np.testing.assert_array_equal(plain(None, pictures, None, KEYS)[0], pictures[:, 0, 0, 0])
  weighted = adaptive.adapted(latent_model, first_value, consistency_weight=2.5)
  lost, _ = objectives_latent.consistency(latent_model)(None, pictures, None, KEYS)
  losses, _ = weighted(None, pictures, None, KEYS)
  np.testing.assert_allclose(losses, pictures[:, 0, 0, 0] + 2.5 * lost, rtol=1e-5)
  # The picture that is made consistent is the one that is saved, not a transformed one.
  both = adaptive.adapted(latent_model, first_value, transforms="noise", consistency_weight=2.5)
  losses, aux = both(None, pictures, None, KEYS)
  np.testing.assert_allclose(losses, aux["seen"][:, 0, 0, 0] + 2.5 * lost, rtol=1e-5)
  assert np.abs(aux["seen"] - pictures).max() > 0.01


def test_options_that_cannot_be_used(latent_model, gaussian_model):
  with pytest.raises(ConfigError, match="consistency_weight must not be negative, got -1"):
    adaptive.adapted(latent_model, first_value, consistency_weight=-1)
  with pytest.raises(ConfigError, match="a consistency term needs a latent diffusion model"):
    adaptive.adapted(gaussian_model, first_value, consistency_weight=1)


@pytest.mark.parametrize("name", [n for n in protections.available() if n not in CONTROLS])
def test_every_method_has_an_adaptive_form(name, latent_model):
  """Both options reach the objective: they are refused, or traced into the round."""
  parameters = inspect.signature(lookup.constructor("udp_jax.protections", name)).parameters
  assert parameters["transforms"].default == "" and parameters["consistency_weight"].default == 0
  required = {n: 0.03 for n, p in parameters.items() if p.default is p.empty and n != "model"}
  required |= {"perceptual": ""} if "perceptual" in parameters else {}
  with pytest.raises(ConfigError, match="unknown transform 'swirl'"):
    protections.build(name, latent_model, required | {"transforms": "swirl"})
  with pytest.raises(ConfigError, match="consistency_weight must not be negative"):
    protections.build(name, latent_model, required | {"consistency_weight": -1.0})
