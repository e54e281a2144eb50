"""CLIP's folders: what is refused, and what the functions promise beside the goldens' values."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import clip, features
from udp_jax.models.clip_vision import CLIPVision


@pytest.fixture
def folder(clip_folder, tmp_path):
  return shutil.copytree(clip_folder, tmp_path / "clip")


def test_vectors_are_of_length_one_and_of_their_picture_alone(tiny_clip):
  pictures = np.random.default_rng(0).random((3, 20, 28, 3)).astype(np.float32)
  embed = jax.jit(tiny_clip.embed_images)
  vectors = np.asarray(embed(tiny_clip.params, pictures))
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  again = embed(tiny_clip.params, pictures[::-1])
  np.testing.assert_allclose(again[::-1], vectors, atol=1e-5)
  # The sides are cut off: 28 wide shrinks to 22, of which the centre 16 are seen.
  pictures[:, :, [0, 1, -2, -1]] = 0
  np.testing.assert_allclose(embed(tiny_clip.params, pictures), vectors, atol=1e-5)


def test_texts_end_where_they_end(tiny_clip):
  first, second, other = tiny_clip.embed_texts(["a cat", "A  cat", "a dog"])
  np.testing.assert_array_equal(first, second)
  assert np.abs(first - other).max() > 1e-3
  # Nothing behind the end of a text counts.
  ids = tiny_clip.tokenizer(["a cat"])
  filled = ids.copy()
  filled[0, 20:] = 5
  embed = jax.jit(tiny_clip.embed_token_ids)
  vectors = [embed(tiny_clip.params, given) for given in (ids, filled)]
  np.testing.assert_allclose(*vectors, atol=1e-6)


def test_crop_keeps_the_shape_of_things():
  pictures = np.zeros((1, 40, 80, 3), np.float32)
  pictures[:, :, 20:60] = 1
  cut = np.asarray(clip.cropped(pictures, 10))
  assert cut.shape == (1, 10, 10, 3)
  np.testing.assert_allclose(cut[:, :, 1:-1], 1, atol=1e-6)
  np.testing.assert_array_equal(clip.cropped(pictures[:, :, :40], 40), pictures[:, :, :40])


def test_as_a_feature_network(clip_folder, tiny_clip):
  extractor = features.load("clip", weights=clip_folder)
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
  found = features.extract(extractor, images)
  expected = jax.jit(tiny_clip.embed_images)(tiny_clip.params, images / np.float32(255))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert (extractor.label, extractor.dim) == ("FD-CLIP", 6)
  with pytest.raises(MissingDataError, match="folder with CLIP's weights"):
    features.load("clip")


def test_what_is_missing_is_named(folder, tmp_path):
  with pytest.raises(MissingDataError, match="no folder .*a CLIP model.*hf download"):
    clip.load(tmp_path / "nowhere")
  (folder / "vocab.json").unlink()
  with pytest.raises(MissingDataError, match="no tokenizer"):
    clip.load(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(MissingDataError, match="safetensors"):
    clip.load(folder)


def edited(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return folder


def test_other_models_are_refused(folder):
  vision = json.loads((folder / "config.json").read_text())["vision_config"]
  with pytest.raises(BadDataError, match="describes a 'siglip', not a clip"):
    clip.load(edited(folder, model_type="siglip"))
  edited(folder, model_type="clip")
  with pytest.raises(BadDataError, match="do not fit"):
    clip.load(edited(folder, projection_dim=7))
  with pytest.raises(ConfigError, match="hidden_act='relu'"):
    clip.load(edited(folder, vision_config=vision | {"hidden_act": "relu"}))
  with pytest.raises(ConfigError, match="image_size=17 is not a multiple of patch_size"):
    clip.load(edited(folder, vision_config=vision | {"image_size": 17}))
  for part in ("num_attention_heads", "patch_size"):
    with pytest.raises(ConfigError, match=f"is not a multiple of {part}=0"):
      clip.load(edited(folder, vision_config=vision | {part: 0}))
  with pytest.raises(ConfigError, match="num_channels"):
    clip.load(edited(folder, vision_config=vision | {"num_channels": 4}))


def test_old_configs_say_things_twice(clip_folder):
  raw = json.loads((clip_folder / "config.json").read_text())
  config = clip.CLIPConfig.from_dict(raw)
  twice = raw | {"vision_config_dict": raw["vision_config"], "text_config_dict": None}
  twice["vision_config"] = None
  assert clip.CLIPConfig.from_dict(twice) == config
  assert clip.CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_pictures_of_another_size_are_refused(tiny_clip):
  vision = CLIPVision(clip.CLIPVisionConfig())
  with pytest.raises(ValueError, match="224x224x3"):
    jax.eval_shape(vision.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
