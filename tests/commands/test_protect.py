"""The flags of `protect` beside those that tests/experiments run: --strength and --band."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from udp_jax.data import marks
from udp_jax.errors import ConfigError
from udp_jax.ops import bands


def _protect(load_entry_point, folder: Path, *words: str) -> dict:
  loaded = load_entry_point("experiments.protect")
  places = [f"--input={folder / 'in'}", f"--output={folder / 'out'}", "--noprogress"]
  loaded.main(loaded.parse(*places, "--method=random_noise", "--overwrite", *words))
  made = marks.read_manifest(folder / "out")
  assert made is not None
  return made


@pytest.mark.parametrize(
  ("words", "radius", "step"),
  [
    (["--strength=gentle"], 4, 0.5),
    (["--strength=strong"], 16, 2),
    (["--strength=12", "--step_size_255=3"], 12, 3),
    (["--radius_255=12"], 12, 2),
  ],
)
def test_a_strength_sets_radius_and_step(
  words: list[str], radius: float, step: float, tmp_path: Path, load_entry_point
) -> None:
  (tmp_path / "in").mkdir()
  Image.fromarray(np.full((9, 9, 3), 100, np.uint8)).save(tmp_path / "in" / "a.png")
  made = _protect(load_entry_point, tmp_path, *words)
  assert (made["radius_255"], made["worst"]["max_abs_255"]) == (radius, radius)
  assert made["config"]["step_size_255"] == step


def test_a_band_is_set_and_recorded(tmp_path: Path, load_entry_point) -> None:
  (tmp_path / "in").mkdir()
  Image.fromarray(np.full((40, 90, 3), 100, np.uint8)).save(tmp_path / "in" / "a.png")
  made = _protect(load_entry_point, tmp_path, "--band=gaussian", "--band_sigma=2")
  row = made["config"]["protections"]["random_noise"]
  assert (row["band"], row["band_sigma"]) == ("gaussian", 2.0)
  pixels = np.asarray(Image.open(tmp_path / "out" / "a.png"), np.float32)[None] - 100
  # Of rough noise, 0.8 is there.
  assert bands.energy_share(jnp.asarray(pixels), 0.5, 2.0)[0] < 0.06
  with pytest.raises(ConfigError, match="overlap is 0: tiles of this band must blend over 6"):
    _protect(load_entry_point, tmp_path, "--band=gaussian", "--overlap=0")


def test_two_budgets_are_refused(tmp_path: Path, load_entry_point) -> None:
  with pytest.raises(ConfigError, match="give --strength or --radius_255, not both"):
    _protect(load_entry_point, tmp_path, "--strength=medium", "--radius_255=8")
  with pytest.raises(ConfigError, match="--strength is 'nan'|--strength is nan"):
    _protect(load_entry_point, tmp_path, "--strength=nan")
