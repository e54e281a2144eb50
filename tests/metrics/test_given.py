"""What a config's weights and draws add to the numbers of a cell."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.metrics.clip_score import CLIPScores
from udp_jax.metrics.given import Given, Judged
from udp_jax.runtime import mesh

CLASSES = ["monet", "degas", "renoir"]
LABELS = np.array([0, 2, 1, 1])
OPTIONS = {"seed": 0, "per_device_batch_size": 4, "mesh": mesh.make_mesh()}


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


def test_nothing_given_nothing_measured(images):
  given = Given({}, classes=CLASSES, judged=None, **OPTIONS)
  assert given.pictures(images, LABELS) == given.against_clean(images, images) == {}
  assert given.samples(images, LABELS, images) == given.describe() == {}


def test_clip(images, clip_folder, tiny_clip):
  given = Given({"clip": str(clip_folder)}, classes=CLASSES, judged=None, **OPTIONS)
  scores = CLIPScores(tiny_clip, per_device_batch_size=4, mesh=mesh.make_mesh())
  texts = [f"a painting by {name}" for name in CLASSES]
  found = given.samples(images, LABELS, images)
  assert set(found) == {"clip_style"}
  np.testing.assert_array_equal(found["clip_style"], scores.hits(images, LABELS, texts))
  np.testing.assert_allclose(given.against_clean(images, images)["clip_likeness"], 1, atol=1e-6)
  assert given.pictures(images, None) == {}
  assert given.describe() == {"clip": {"revision": tiny_clip.revision}}


def test_diffusion_classifier(prompted_model):
  """Three classes of three brightnesses."""
  params, conds = {"spread": 0.1}, np.array([[-0.5], [0.0], [0.5]], np.float32)
  pictures = np.full((4, 8, 8, 3), 127.5 * (1 + conds[LABELS, :, None, None])).astype(np.uint8)
  judged = Judged(prompted_model, params, conds)
  given = Given({"classifier_draws": 5}, classes=CLASSES, judged=judged, **OPTIONS)
  found = given.samples(pictures, np.array([0, 2, 1, 0]), pictures)
  assert set(found) == {"prompt_hits"}
  np.testing.assert_array_equal(found["prompt_hits"], [1, 1, 1, 0])
  for judged in (None, Judged(prompted_model, params, None)):
    with pytest.raises(ConfigError, match="has to name the pictures' classes"):
      Given({"classifier_draws": 2}, classes=None, judged=judged, **OPTIONS)


def test_missing_weights_are_no_metric_left_out(tmp_path):
  for name in ("clip", "face"):
    with pytest.raises(MissingDataError):
      Given({name: str(tmp_path / "none")}, classes=CLASSES, judged=None, **OPTIONS)
