"""Output folders: what of them is ours."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.made import finished_folder, save_picture
from udp_jax.data import manifest
from udp_jax.errors import OutputError


def test_overwriting_spares_what_somebody_put_there(tmp_path: Path) -> None:
  place = finished_folder(tmp_path / "out")
  mine = save_picture(place / "a.png", seed=9).read_bytes()
  for extend in (False, True):
    with pytest.raises(OutputError, match=r"a\.png is not the file that its manifest.json names"):
      manifest.check_output(place, overwrite=not extend, extend=extend)
  with pytest.raises(OutputError, match=r"a\.png is not the file"):
    manifest.write_folder(place, np.zeros((1, 8, 8, 3), np.uint8), ["z"], overwrite=True)
  assert (place / "a.png").read_bytes() == mine and (place / "b.png").exists()
  (place / "a.png").unlink()  # Moved away.
  (place / "b.png").write_bytes(b"")  # Nothing that could be lost.
  with pytest.raises(
    OutputError, match=r"finished output .* of which a\.png is missing or not as it was .2 "
  ):
    manifest.check_output(place)
  manifest.write_folder(place, np.zeros((1, 8, 8, 3), np.uint8), ["z"], overwrite=True)
  assert sorted(os.listdir(place)) == ["manifest.json", "z.png"]
