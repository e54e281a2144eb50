"""CLIP and the face network against values of PyTorch (tests/goldens/make_encoder_goldens.py).

The same comparisons run live in tests/parity/test_encoder_parity.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from udp_jax.models import clip, face_embedding, weights

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def encoder_models():
  sys.path.insert(0, str(GOLDENS))
  try:
    import encoder_models

    return encoder_models
  finally:
    sys.path.remove(str(GOLDENS))


@pytest.fixture(scope="module")
def goldens():
  with np.load(GOLDENS / "encoders.npz") as file:
    return {name: file[name] for name in file.files}


def clip_params(encoder_models, config):
  template = clip.shapes(config)
  named = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    keys = tuple(entry.key for entry in path)
    kernel = keys[-1] == "kernel"
    shape = (*leaf.shape[:-3:-1], *leaf.shape[:-2]) if kernel else leaf.shape
    named[weights.torch_name(keys)] = shape
  return weights.from_torch_names(encoder_models.tensors(named), template)


@pytest.mark.parametrize("name", ["clip", "clip_legacy"])
def test_clip(encoder_models, goldens, name):
  fields = getattr(encoder_models, name.upper())
  config = clip.CLIPConfig.from_dict(fields)
  params = clip_params(encoder_models, config)
  images, ids = encoder_models.clip_inputs(fields)
  embed_images, embed_token_ids = clip.functions(config)
  found = jax.jit(embed_token_ids)(params, ids)
  np.testing.assert_allclose(found, goldens[f"{name}/texts"], atol=TOLERANCE)
  if name == "clip":
    found = jax.jit(embed_images)(params, images)
    np.testing.assert_allclose(found, goldens[f"{name}/images"], atol=TOLERANCE)
    # Pictures and texts that the comparison could not tell apart would prove nothing.
    assert np.abs(np.diff(found, axis=0)).max() > 0.05


def test_face_network(encoder_models, goldens):
  shapes = zip(goldens["face/names"], goldens["face/shapes"], strict=True)
  shapes = {str(name): tuple(map(int, shape.split())) for name, shape in shapes}
  params = face_embedding.params_from_tensors(encoder_models.face_tensors(shapes))
  found = jax.jit(face_embedding.embed)(params, encoder_models.face_inputs())
  expected = goldens["face/vectors"]
  np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())
  assert np.abs(np.diff(expected, axis=0)).max() > 0.1 * np.abs(expected).max()
