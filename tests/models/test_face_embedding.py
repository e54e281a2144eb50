"""The face network's files and pictures; its values are in test_encoder_goldens.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import face_embedding


def _norm(name, channels):
  parts = ("weight", "bias", "running_mean", "running_var")
  return {f"{name}.{part}": (channels,) for part in parts}


def shapes():
  """One block a stage, pictures of 16x16."""
  made = {"conv1.weight": (4, 3, 3, 3), "prelu.weight": (4,)} | _norm("bn1", 4)
  for stage, (inputs, outputs) in enumerate(((4, 4), (4, 6), (6, 6), (6, 8)), 1):
    name = f"layer{stage}.0"
    made |= _norm(f"{name}.bn1", inputs) | _norm(f"{name}.bn2", outputs)
    made |= _norm(f"{name}.bn3", outputs) | _norm(f"{name}.downsample.1", outputs)
    made[f"{name}.conv1.weight"] = (outputs, inputs, 3, 3)
    made[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3)
    made[f"{name}.prelu.weight"] = (outputs,)
    made[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
  made |= _norm("bn2", 8) | _norm("features", 5) | {"fc.weight": (5, 8), "fc.bias": (5,)}
  return made


@pytest.fixture(scope="module")
def tensors():
  generator = np.random.default_rng(0)
  made = {k: generator.uniform(0.2, 1, v).astype(np.float32) for k, v in shapes().items()}
  for name, value in made.items():
    if value.ndim > 1:
      made[name] = (generator.normal(size=value.shape) / value[0].size ** 0.5).astype(np.float32)
  return made


@pytest.fixture
def file(tensors, tmp_path):
  path = tmp_path / "arcface.safetensors"
  counted = tensors | {"bn1.num_batches_tracked": np.array(7)}
  safetensors.numpy.save_file(counted, path)
  return path


def test_a_file(file):
  face = face_embedding.load(file)
  assert (face.size, face.dim) == (16, 5) and face.revision.startswith(
    "arcface.safetensors sha256:"
  )
  pictures = np.random.default_rng(1).random((3, 20, 30, 3)).astype(np.float32)
  apply = jax.jit(lambda images: face.apply(face.params, images))
  vectors = np.asarray(apply(pictures))
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  assert np.abs(np.diff(vectors, axis=0)).max() > 1e-2
  # The largest centred square is what is seen.
  pictures[:, :, :5], pictures[:, :, 25:] = 0, 1
  np.testing.assert_allclose(apply(pictures), vectors, atol=1e-6)
  np.testing.assert_allclose(apply(pictures[:, :, 5:25]), vectors, atol=1e-5)


def test_other_tensors_are_refused(tensors):
  for change, message in (
    ({"layer2.0.bn3.running_var": None}, "tensor layer2.0.bn3.running_var is missing"),
    ({"layer3.0.conv1.weight": np.ones((6, 5, 3, 3))}, r"is \(6, 5, 3, 3\), expected \(-1, 6,"),
    ({"head.weight": np.ones(3)}, "1 tensors left over, such as head.weight"),
    ({"layer1.2.prelu.weight": np.ones(4)}, "tensor layer1.1.bn1.weight is missing"),
    ({"fc.weight": np.ones((5, 24))}, "no square of 8 channels"),
  ):
    changed = {k: v for k, v in (tensors | change).items() if v is not None}
    with pytest.raises(BadDataError, match=message):
      face_embedding.params_from_tensors(changed)


def test_files_that_cannot_be_used(tmp_path):
  with pytest.raises(MissingDataError, match="no face model .*model zoo"):
    face_embedding.load(tmp_path / "none.safetensors")
  pickle = tmp_path / "backbone.pth"
  pickle.write_bytes(b"PK")
  with pytest.raises(ConfigError, match="opened only with its sha256"):
    face_embedding.load(pickle)
  with pytest.raises(BadDataError, match="sha256 is"):
    face_embedding.load(pickle, sha256="0" * 64)
  damaged = tmp_path / "damaged.safetensors"
  damaged.write_bytes(b"not a tensor")
  with pytest.raises(BadDataError, match="not a readable safetensors file"):
    face_embedding.load(damaged)
