import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import efficientnet_lite, features


def _means(traces):
  """An extractor of the mean colour that notes the shape it is traced with."""

  def apply(params, images):
    traces.append(images.shape)
    return params["scale"] * images.mean((1, 2))

  return features.FeatureExtractor("means", "FD-means", {"scale": jnp.ones(3)}, apply, 3, "none")


def _images(count):
  return np.random.default_rng(0).integers(0, 256, (count, 5, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 23, 24])
def test_every_image_gets_its_features_with_one_compilation(count):
  traces = []
  images = _images(count)
  values = features.extract(_means(traces), images, per_device_batch_size=8)
  assert values.dtype == np.float32 and values.shape == (count, 3)
  np.testing.assert_allclose(values, images.mean((1, 2)) / 255, rtol=1e-5)
  assert len(traces) == 1
  assert traces[0] == (min(count, 8), 5, 4, 3)


def test_a_second_set_is_not_compiled_again():
  traces = []
  extractor = _means(traces)
  features.extract(extractor, _images(20), per_device_batch_size=8)
  features.extract(extractor, _images(13), per_device_batch_size=8)
  assert len(traces) == 1


def test_floats_and_bytes_agree():
  images = _images(5)
  values = features.extract(_means([]), images)
  floats = features.extract(_means([]), images.astype(np.float32) / 255)
  np.testing.assert_allclose(values, floats, rtol=1e-6)


def test_products_keep_full_precision_on_every_device():
  apply = lambda params, images: images.mean((1, 2)) @ params
  lowered = features._apply.lower(apply, jnp.ones((3, 3)), jnp.zeros((2, 4, 4, 3), jnp.uint8))
  assert "HIGHEST" in lowered.as_text()


def test_the_progress_bar_counts_images(capsys):
  features.extract(_means([]), _images(11), per_device_batch_size=4, progress=True)
  written = capsys.readouterr().err
  assert "11/11" in written and "FD-means" in written
  features.extract(_means([]), _images(11), per_device_batch_size=4)
  assert not capsys.readouterr().err


def test_several_devices_share_a_batch():
  program = """
import jax, jax.numpy as jnp, numpy as np
from udp_jax.models import features
shards = []
def apply(params, images):
  note = lambda sharding: shards.append(sharding.shard_shape(images.shape))
  jax.debug.inspect_array_sharding(images, callback=note)
  return params["scale"] * images.mean((1, 2))
extractor = features.FeatureExtractor("m", "m", {"scale": jnp.ones(3)}, apply, 3, "")
images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3)).astype(np.uint8)
values = features.extract(extractor, images, per_device_batch_size=4)
np.testing.assert_allclose(values, images.mean((1, 2)) / 255, rtol=1e-5)
assert shards == [(4, 4, 4, 3)], shards
"""
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
    "JAX_PLATFORMS": "cpu",
  }
  subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
  ("images", "error"),
  [
    (np.zeros((0, 4, 4, 3), np.uint8), BadDataError),
    (np.zeros((4, 4, 3), np.uint8), ValueError),
    (np.zeros((2, 4, 4, 1), np.uint8), ValueError),
    (np.zeros((2, 4, 4, 3), np.int32), ValueError),
    (np.full((2, 4, 4, 3), 255.0), ValueError),
    (np.full((2, 4, 4, 3), -0.1), ValueError),
    (np.full((2, 4, 4, 3), np.nan), ValueError),
  ],
)
def test_what_are_no_images_is_refused(images, error):
  with pytest.raises(error):
    features.extract(_means([]), images)


def test_the_default_network_sees_that_pictures_differ():
  extractor = features.load()
  assert (extractor.name, extractor.label) == ("efficientnet_lite0", "FD-EffLite0")
  assert efficientnet_lite.SHA256 in extractor.revision
  images = np.repeat(_images(2), 8, axis=1).repeat(8, axis=2)
  values = features.extract(extractor, np.concatenate([images, images[:1]]))
  assert values.shape == (3, extractor.dim) and np.isfinite(values).all()
  assert (values >= 0).all()
  np.testing.assert_allclose(values[0], values[2], atol=1e-4)
  assert np.abs(values[0] - values[1]).max() > 0.1


def test_an_unknown_name_is_answered_with_the_known_ones():
  with pytest.raises(ConfigError, match="'vgg'.*efficientnet_lite0, inception_v3"):
    features.load("vgg")


def test_inception_asks_for_its_weights(tmp_path):
  with pytest.raises(MissingDataError, match="inception_v3 needs a weight file"):
    features.load("inception_v3")
  with pytest.raises(MissingDataError, match="absent.safetensors"):
    features.load("inception_v3", weights=tmp_path / "absent.safetensors")
