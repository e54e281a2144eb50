"""Metrics that a config gives weights or draws for: in the numbers of the cells they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import matrix as building
from tests.studies.matrix.conftest import small
from udp_jax.data import image_set, manifest
from udp_jax.errors import ConfigError
from udp_jax.metrics import diffusion_classifier, given
from udp_jax.metrics.clip_score import CLIPScores
from udp_jax.models import face_embedding
from udp_jax.studies import build
from udp_jax.studies.matrix import measuring, plan, purifying, results, run, subject
from udp_jax.studies.matrix.plan import Cell

FACE = {
  "label": "Colours; centre squares as given, no face is detected or aligned",
  "revision": "mean colour",
}
NEW = {"clip_style", "clip_likeness", "identity", "prompt_hits"}


class MeanColour(NamedTuple):
  """In place of a face network: the direction of the mean colour away from grey."""

  params: jax.Array = jnp.ones(3)
  revision: str = "mean colour"
  label: str = "Colours"

  def apply(self, params: jax.Array, images: jax.Array) -> jax.Array:
    away = params * (images.mean((1, 2)) - 0.5)
    return away / jnp.linalg.norm(away, axis=-1, keepdims=True)


@pytest.fixture
def asking(tiny_pipeline_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
  """A config that asks for all of them; one row and its edits."""
  monkeypatch.setattr(face_embedding, "load", lambda path, sha256="": MeanColour())
  config = small(tiny_pipeline_folder)
  config.prompt, config.use_purifiers = "a photo of {label}", ()
  config.evaluation.update({"clip": str(clip_folder), "face": "a face", "classifier_draws": 2})
  config.evaluation.features = ""
  return config


def study_of(config: Any) -> build.Study:
  """The matrix's model and devices, opened; nothing is written."""
  model, config = subject.load(config)
  return build.Study(config, Path("nowhere"), model, build.make_mesh(config), progress=False)


def report_of(config: Any, workdir: Path) -> dict[str, Any]:
  finished = run.run_matrix(config, workdir, plan.make(config), progress=False)
  return results.build(workdir, finished)


def test_defaults_are_those_of_the_metrics() -> None:
  assert building.GIVEN == given.DEFAULTS
  assert given.DEFAULTS.items() <= building.matrix("a title").evaluation.to_dict().items()


@pytest.mark.slow
def test_what_is_given_is_in_the_report(asking: Any, tiny_clip: Any, tmp_path: Path) -> None:
  report = report_of(asking, tmp_path / "run")
  assert report["failures"] == []
  shown = [NEW & {metric["key"] for metric in table["metrics"]} for table in report["tables"]]
  assert shown == [{"clip_style", "prompt_hits"}, NEW]
  assert report["networks"]["clip"] == {"revision": tiny_clip.revision}
  assert report["networks"]["face"] == FACE
  own, edits = (
    {entry["row"]: entry["metrics"] for entry in table["cells"]} for table in report["tables"]
  )
  assert edits["random_noise"].keys() >= NEW
  # From the files of the cells, by the metrics themselves.
  found, _ = subject.load(asking)
  clean, _ = run.load_pictures(asking, found)
  options: dict[str, Any] = {"per_device_batch_size": 4, "mesh": build.make_mesh(asking)}
  texts = [f"a photo of {name}" for name in clean.origin["classes"]]
  conds = found.embeddings(texts)
  assert conds is not None and len(conds) > 2 and clean.labels is not None
  classifier = diffusion_classifier.DiffusionClassifier(found.measuring, seed=0, draws=2, **options)
  scores = CLIPScores(tiny_clip, **options)
  candidates = [f"a painting by {name}" for name in clean.origin["classes"]]
  protected = purifying.read(Cell("random_noise", "none"), tmp_path / "run")
  folder = Cell("random_noise", "none", "img2img", 0).folder(tmp_path / "run") / "edits"
  edited = manifest.read_folder(folder)[0].images
  for images, metrics in ((protected, own["random_noise"]), (edited, edits["random_noise"])):
    hits = diffusion_classifier.hits(classifier(found.params, images, conds), clean.labels)
    assert metrics["prompt_hits"]["mean"] == pytest.approx(hits.mean())
    assert metrics["prompt_hits"]["count"] == len(hits)
    style = scores.hits(images, clean.labels, candidates)
    assert metrics["clip_style"]["mean"] == pytest.approx(style.mean())
  likeness = scores.likeness(edited, clean.images).mean()
  assert edits["random_noise"]["clip_likeness"]["mean"] == pytest.approx(likeness)
  assert likeness < 1 - 1e-6


@pytest.mark.slow
def test_samples_and_edits(asking: Any, tiny_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  """Of a trained model: here the one that nobody trained, and samples that are the pictures."""
  study = study_of(asking)
  found = study.model
  clean, _ = run.load_pictures(asking, found)
  measures = measuring.Measures(study, clean, image_set.take(clean, []))
  cond = found.embeddings(subject.texts_of(asking.prompt, clean))
  values, _ = measures.samples(clean.images, found.params, labels=clean.labels, cond=cond)
  assert NEW & values.keys() == {"clip_style", "identity", "prompt_hits"}
  assert len(values["identity"]) == len(clean.images) and (values["identity"] > -1).all()
  values, _ = measures.samples(clean.images, found.params, labels=None, cond=cond)
  assert NEW & values.keys() == {"identity"}
  # The metrics that every matrix has are those of test_run.
  none = np.zeros(len(clean.images))
  monkeypatch.setattr(measures, "_compare", lambda *_: {"perceptual": none})
  values = measures.edits(clean.images[::-1], clean.images, clean.images)
  assert NEW <= values.keys()
  assert values["clip_likeness"].mean() < 1 - 1e-6 and values["identity"].shape == none.shape
  described = measures.describe()
  assert described["clip"] == {"revision": tiny_clip.revision}
  assert described["face"] == FACE


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"classifier_draws": 2}, "the prompt has to name the pictures' classes"),
    ({"clip_top": 200}, "config.evaluation.clip_top is 200; with [0-9]+ classes it is 1 to"),
  ],
)
def test_metrics_that_cannot_be_had_end_the_run_at_its_start(
  changed: dict[str, Any], message: str, asking: Any, tmp_path: Path
) -> None:
  asking.prompt = "a photo"
  asking.evaluation.update({"classifier_draws": 0} | changed)
  with pytest.raises(ConfigError, match=message):
    report_of(asking, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_pictures_of_one_class_cannot_be_told_apart(asking: Any) -> None:
  study = study_of(asking)
  clean, holdout = run.load_pictures(asking, study.model)
  clean = clean._replace(origin=clean.origin | {"classes": ["one"]})
  with pytest.raises(ConfigError, match="classifier_draws: the pictures are all of one class"):
    measuring.Measures(study, clean, holdout)
