"""Rows and runs: whose draws a row has, and what a part of a stage changes."""

from __future__ import annotations

import zlib
from pathlib import Path

import jax
import numpy as np

from udp_jax.runtime import mesh
from udp_jax.stages.records import Row, Run

ROW = Row("udp_shuffled", "shuffled_delta", {"radius_255": 8.0}, 3, 8.0, imitates="udp")


def test_a_control_draws_like_the_row_that_it_imitates() -> None:
  assert ROW.stream == "protect/udp"
  assert ROW._replace(imitates=None).stream == "protect/udp_shuffled"


def test_options_are_replaced_in_a_copy() -> None:
  changed = ROW.with_options(radius_255=4.0, start="sign")
  assert changed.options == {"radius_255": 4.0, "start": "sign"}
  assert ROW.options == {"radius_255": 8.0} and changed[:2] == ROW[:2]


def test_a_part_of_a_stage() -> None:
  run = Run(mesh.make_mesh(), Path("a"), jax.random.key(3), "protect", global_batch_size=8)
  part = run.at(Path("a/b"), "a part")
  assert (part.folder, part.label, part.global_batch_size) == (Path("a/b"), "a part", 8)
  assert part.key is run.key and run.folder == Path("a")
  drawing = run.drawing("sample")
  # Names of streams are results: another way to a key would change every picture.
  expected = jax.random.fold_in(run.key, zlib.crc32(b"sample"))
  np.testing.assert_array_equal(jax.random.key_data(drawing.key), jax.random.key_data(expected))
  assert drawing.label == run.label
