"""Marks of folders of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.made import finished_folder
from udp_jax.data import marks


@pytest.mark.parametrize(
  ("record", "said"),
  [
    ({"method": "clean"}, "a clean reference that udp_jax kept"),
    ({"method": "samples"}, "a folder that udp_jax sampled from a model"),
    (
      {"method": "eudp", "radius_255": 7.65},
      "a folder that udp_jax protected by eudp, radius 7.65",
    ),
    ({"method": "jpeg"}, "a folder that udp_jax purified by jpeg"),
  ],
)
def test_what_a_folder_is(record: dict, said: str, tmp_path: Path) -> None:
  folder = finished_folder(tmp_path / "out", record)
  assert marks.describe(folder) == said
  assert marks.is_complete(folder) and marks.is_written(folder)


def test_a_file_that_is_gone_makes_a_folder_incomplete(tmp_path: Path) -> None:
  folder = finished_folder(tmp_path / "out")
  (folder / "a.png").unlink()
  assert marks.read_manifest(folder) is not None
  assert not marks.is_complete(folder) and marks.is_written(folder)


@pytest.mark.parametrize(
  "change",
  [
    {"format": 2},
    {"complete": False},
    {"images": []},
    {"images": {}},
    {"images": [{"file": "../a.png"}]},
    {"images": [{"file": 3}]},
    {"images": ["a.png"]},
  ],
)
def test_manifests_of_others(change: dict, tmp_path: Path) -> None:
  folder = finished_folder(tmp_path / "out")
  path = folder / marks.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  assert marks.read_manifest(folder) is None and marks.describe(folder) is None
  assert not marks.is_complete(folder) and not marks.is_written(folder)


def test_an_unfinished_folder_is_ours_too(tmp_path: Path) -> None:
  assert not marks.is_written(tmp_path)
  (tmp_path / marks.INCOMPLETE).touch()
  assert marks.is_written(tmp_path) and not marks.is_complete(tmp_path)
