from __future__ import annotations

import os
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import upkeep


def _entry(folder: Path, name: str, size: int, age: float) -> Path:
  path = folder / f"{name}-cache"
  path.write_bytes(zlib.compress(os.urandom(size)))
  os.utime(path, (1e9 - age, 1e9 - age))
  return path


def test_unfinished_and_oldest_entries_are_swept(tmp_path: Path) -> None:
  old, young = _entry(tmp_path, "old", 4000, age=9), _entry(tmp_path, "young", 4000, age=1)
  torn = _entry(tmp_path, "torn", 4000, age=0)
  torn.write_bytes(torn.read_bytes()[:-7])
  (tmp_path / "empty-cache").touch()
  upkeep.sweep(tmp_path, limit=100_000)
  assert set(tmp_path.iterdir()) == {old, young}
  upkeep.sweep(tmp_path, limit=5000)
  assert set(tmp_path.iterdir()) == {young}


def test_the_files_that_take_longest_are_there() -> None:
  root = Path(upkeep.__file__).resolve().parents[1]
  assert [name for name in upkeep.LONG if not (root / name).is_file()] == []


@pytest.mark.slow
def test_programs_are_kept_in_the_repository(pytestconfig: pytest.Config) -> None:
  if not hasattr(pytestconfig, "cache"):
    pytest.skip("pytest keeps no cache")
  folder = Path(jax.config.jax_compilation_cache_dir)
  assert folder.is_relative_to(pytestconfig.rootpath)
  constant = int.from_bytes(os.urandom(3), "big")  # No run before this one had it.
  names = [f"/jax/compilation_cache/{name}" for name in ("cache_misses", "cache_hits")]
  for expected in ([1, 0], [0, 1]):
    before = [upkeep._counts[name] for name in names]
    jax.block_until_ready(jax.jit(lambda x: x + np.int32(constant))(np.ones(3, np.int32)))
    assert [upkeep._counts[name] - n for name, n in zip(names, before)] == expected
    jax.clear_caches()
