"""Prepared TFDS data sets, on one written here record by record and without TensorFlow."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import sources
from udp_jax.errors import ConfigError, MissingDataError

needs_tfds = pytest.mark.skipif(
  importlib.util.find_spec("tensorflow_datasets") is None
  or importlib.util.find_spec("array_record") is None,
  reason="needs tensorflow-datasets: pip install 'udp-jax[tfds]'",
)


def _pixels(count: int = 6) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def _prepare(root: Path) -> None:
  """Writes what download_and_prepare(file_format="array_record") leaves of a small data set."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_generated_pb2 as example_pb2
  from tensorflow_datasets.proto import tf_feature_generated_pb2 as feature_pb2

  folder = root / "tiny_animals" / "1.0.0"
  folder.mkdir(parents=True)
  tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(8, 8, 3)),
      "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
  ).save_config(folder)
  writer = ArrayRecordWriter(
    str(folder / "tiny_animals-train.array_record-00000-of-00001"), "group_size:1"
  )
  for i, image in enumerate(_pixels()):
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    features = {
      "image": feature_pb2.Feature(bytes_list=feature_pb2.BytesList(value=[png.getvalue()])),
      "label": feature_pb2.Feature(int64_list=feature_pb2.Int64List(value=[i % 2])),
    }
    example = example_pb2.Example(features=feature_pb2.Features(feature=features))
    writer.write(example.SerializeToString())
  writer.close()
  split = {
    "name": "train",
    "numBytes": "1",
    "shardLengths": ["6"],
    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  }
  info = {
    "name": "tiny_animals",
    "version": "1.0.0",
    "fileFormat": "array_record",
    "splits": [split],
  }
  (folder / "dataset_info.json").write_text(json.dumps(info))


@needs_tfds
def test_prepared_data_set_is_read_without_tensorflow(tmp_path: Path) -> None:
  _prepare(tmp_path)
  loaded = sources.load(f"tfds:tiny_animals:train@{tmp_path}")
  np.testing.assert_array_equal(loaded.images, _pixels())
  np.testing.assert_array_equal(loaded.labels, [0, 1, 0, 1, 0, 1])
  assert loaded.origin["classes"] == ["cat", "dog"]
  assert loaded.names[:2] == ("cat/00000", "dog/00001")
  assert "tensorflow" not in sys.modules

  dogs = sources.load(f"tfds:tiny_animals@{tmp_path}", classes=("dog",), limit=2, image_size=4)
  assert dogs.images.shape == (2, 4, 4, 3)
  assert set(dogs.names) < {"dog/00001", "dog/00003", "dog/00005"}
  with pytest.raises(ConfigError, match="no class cow; it has cat, dog"):
    sources.load(f"tfds:tiny_animals@{tmp_path}", classes=("cow",))


@needs_tfds
def test_split_or_data_set_that_is_not_there(tmp_path: Path) -> None:
  _prepare(tmp_path)
  for spec in ("tiny_animals:test", "nonesuch"):
    with pytest.raises(MissingDataError, match="tfds:.*prepare it where TensorFlow is") as caught:
      sources.load(f"tfds:{spec}@{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(MissingDataError, match=r"pip install 'udp-jax\[tfds\]'"):
    sources.load("tfds:mnist")
