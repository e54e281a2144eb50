"""Protecting the Gaussian model's pictures: what is written, kept, and gone on with."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.stages.trained import KEY
from udp_jax.data import image_set, manifest
from udp_jax.errors import OutputError
from udp_jax.models.context import Model
from udp_jax.runtime import mesh
from udp_jax.runtime.metrics_log import read_metrics
from udp_jax.stages import protect
from udp_jax.stages.records import Row, Run

pytestmark = pytest.mark.usefixtures("built_once")


@pytest.fixture
def clean(pictures: np.ndarray) -> image_set.ImageSet:
  names = [f"p{i:02d}" for i in range(len(pictures))]
  return image_set.finish(image_set.ImageSet(pictures, names), "a test")


def _protect(model, clean, place: Path, method: str, *, radius_255=12.0, **changes) -> np.ndarray:
  options = {"radius_255": radius_255}
  if method == "udp":
    options |= {"step_size_255": 3.0, "train_steps": 4, "perturb_steps": 2}
  num_rounds = changes.pop("num_rounds", 7)
  row = Row(method, method, options, num_rounds, radius_255, record={"method": method})
  settings = {
    "mesh": mesh.make_mesh(),
    "folder": place.parent / f"{place.name}.scratch",
    "key": KEY,
    "label": f"protect {method}",
    "global_batch_size": 8,
    "checkpoint_every": 3,
    "progress": False,
  }
  return protect.protect(row, Model(model), clean, place, Run(**(settings | changes)))


def test_protecting_writes_what_it_returns_and_keeps_the_budget(
  gaussian_model, clean, tmp_path: Path
) -> None:
  protected = _protect(gaussian_model, clean, tmp_path / "out", "udp")
  difference = np.abs(protected.astype(int) - clean.images)
  assert 6 <= difference.max() <= 12
  assert (difference.max(axis=(1, 2, 3)) > 0).all()
  read, record = manifest.read_folder(tmp_path / "out")
  np.testing.assert_array_equal(read.images, protected)
  assert read.names == clean.names
  assert record is not None and record["radius_255"] == 12
  records = read_metrics(tmp_path / "out.scratch" / "metrics.jsonl")
  assert [r["position"] for r in records] == [1, 2, 3, 4, 5, 6, 7]
  # Rounds 1 and 6 are timed in parts; every other one as a whole.
  assert [i for i, r in enumerate(records) if "min_images_per_s" in r] == [0, 5]
  assert [i for i, r in enumerate(records) if "images_per_s" in r] == [1, 2, 3, 4, 6]
  assert all(r["train_loss"] > 0 and r["max_loss"] > 0 for r in records)


def test_finished_folder_is_read_and_not_made_again(gaussian_model, clean, tmp_path: Path) -> None:
  first = _protect(gaussian_model, clean, tmp_path / "out", "random_noise")
  again = _protect(gaussian_model, clean, tmp_path / "out", "random_noise", key=jax.random.key(9))
  np.testing.assert_array_equal(first, again)
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "note.txt").touch()
  with pytest.raises(OutputError, match="not ours"):
    _protect(gaussian_model, clean, tmp_path / "foreign", "random_noise")


def test_noise_does_not_depend_on_the_batches(gaussian_model, clean, tmp_path: Path) -> None:
  results = [
    _protect(gaussian_model, clean, tmp_path / str(size), "random_noise", global_batch_size=size)
    for size in (3, 20)
  ]
  np.testing.assert_array_equal(*results)


@pytest.mark.slow
def test_going_on_from_a_checkpoint_gives_the_same(gaussian_model, clean, tmp_path: Path) -> None:
  whole = _protect(gaussian_model, clean, tmp_path / "whole", "udp")
  scratch = tmp_path / "scratch"
  _protect(gaussian_model, clean, tmp_path / "part", "udp", num_rounds=4, folder=scratch)
  rest = _protect(gaussian_model, clean, tmp_path / "rest", "udp", folder=scratch)
  np.testing.assert_array_equal(rest, whole)
  positions = [record["position"] for record in read_metrics(scratch / "metrics.jsonl")]
  assert positions == [1, 2, 3, 4, 5, 6, 7]


def test_grey_files_stay_grey(gaussian_model, clean, tmp_path: Path) -> None:
  images = clean.images.copy()
  images[::2] = images[::2, ..., :1]
  metadata = [image_set.Metadata(name, grey=i == 0) for i, name in enumerate(clean.names)]
  some = image_set.finish(image_set.ImageSet(images, clean.names, metadata=metadata), "a test")
  # By noise: steps that keep grey are those of test_pictures.
  protected = _protect(gaussian_model, some, tmp_path / "out", "random_noise")
  assert (protected[::2] == protected[::2, ..., :1]).all()
  assert not (protected[1::2] == protected[1::2, ..., :1]).all(axis=(1, 2, 3)).any()
  assert 6 <= np.abs(protected[::2].astype(int) - images[::2]).max() <= 12
  for number, mode in ((0, "L"), (2, "RGB")):
    with Image.open(tmp_path / "out" / f"{clean.names[number]}.png") as saved:
      assert saved.mode == mode


def test_streaming_perturbs_like_resident_data(gaussian_model, clean, tmp_path: Path) -> None:
  resident = _protect(gaussian_model, clean, tmp_path / "a", "random_noise")
  streamed = _protect(gaussian_model, clean, tmp_path / "b", "random_noise", shard_batches=2)
  np.testing.assert_array_equal(resident, streamed)


@pytest.mark.slow
def test_streaming_goes_on_from_a_checkpoint(gaussian_model, clean, tmp_path: Path) -> None:
  visits = {"shard_batches": 2, "num_rounds": 6}
  whole = _protect(gaussian_model, clean, tmp_path / "whole", "udp", **visits)
  assert 6 <= np.abs(whole.astype(int) - clean.images).max() <= 12
  scratch = tmp_path / "scratch"
  part = visits | {"num_rounds": 4, "folder": scratch}
  _protect(gaussian_model, clean, tmp_path / "part", "udp", **part)
  rest = visits | {"folder": scratch}
  np.testing.assert_array_equal(
    _protect(gaussian_model, clean, tmp_path / "rest", "udp", **rest), whole
  )
  records = read_metrics(scratch / "metrics.jsonl")
  assert [record["position"] for record in records] == [1, 2, 3, 4, 5, 6]
  for record in records:
    assert record["train_loss"] > 0 and record["max_loss"] > 0 and record["delta_rms_255"] > 0
  assert [i for i, r in enumerate(records) if "min_images_per_s" in r] == [0, 5]
