"""The sampling stage on the Gaussian model: files in order, whatever the count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.trained import KEY, train_briefly
from udp_jax.data import manifest
from udp_jax.runtime import mesh
from udp_jax.stages import sample
from udp_jax.stages.records import Run

pytestmark = pytest.mark.usefixtures("built_once")


def test_samples_are_written_in_order(gaussian_model, pictures, tmp_path: Path) -> None:
  threat, params = train_briefly(gaussian_model, pictures, tmp_path / "model")
  sampled = [
    sample.sample(
      threat.sample,
      params,
      tmp_path / str(count),
      Run(mesh.make_mesh(), tmp_path, KEY, "sample", sample_batch_size=4, progress=False),
      num_samples=count,
      asked=sample.Asked(record={"method": "samples"}),
    )
    for count in (6, 9)
  ]
  assert [len(images) for images in sampled] == [6, 9]
  np.testing.assert_array_equal(sampled[0], sampled[1][:6])
  names = [e["file"] for e in json.loads((tmp_path / "6/manifest.json").read_text())["images"]]
  assert names == [f"{i:05d}.png" for i in range(6)]
  np.testing.assert_array_equal(manifest.read_folder(tmp_path / "6")[0].images, sampled[0])
