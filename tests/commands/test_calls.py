"""Pictures of every kind go through, and come back as what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import udp_jax
from udp_jax.commands import calls
from udp_jax.data import marks
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models.context import Model


@pytest.fixture
def model(gaussian_model) -> Model:
  import jax

  return Model(gaussian_model, gaussian_model.init(jax.random.key(1)))


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(60, 200, shape).astype(np.uint8)


def _change(made: np.ndarray, clean: np.ndarray) -> int:
  return int(np.abs(made.astype(int) - clean).max())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
  (tmp_path / "in").mkdir()
  paths = [tmp_path / "in" / name for name in ("b.png", "a.png")]
  for seed, path in enumerate(paths):
    Image.fromarray(_noise(10, 11, 3, seed=seed)).save(path)
  return paths


def test_arrays_of_any_size_are_cut_into_tiles(model) -> None:
  options = {"strength": "gentle", "num_rounds": 2}
  clean = _noise(13, 9, 3)
  one = udp_jax.protect(clean, model, "advdm", **options)
  assert one.shape == clean.shape and one.dtype == np.uint8 and 0 < _change(one, clean) <= 4
  np.testing.assert_array_equal(one, udp_jax.protect(clean, model, "advdm", **options))
  other = udp_jax.protect([clean, clean[:8, :8]], model, "advdm", **options)
  assert isinstance(other, list) and [made.shape for made in other] == [(13, 9, 3), (8, 8, 3)]
  np.testing.assert_array_equal(other[0], one)


def test_a_strength_is_a_radius_and_an_eighth_of_it_a_step(model, pictures) -> None:
  for strength, levels in (("gentle", 4), ("medium", 8), ("strong", 16), (24, 24)):
    made = [
      udp_jax.protect(pictures, model, "advdm", num_rounds=3, start="zero", **budget)
      for budget in (
        {"strength": strength},
        {"radius_255": levels, "step_size_255": levels / 8},
      )
    ]
    np.testing.assert_array_equal(*made)


def test_pictures_of_pillow_keep_their_kind(model) -> None:
  colour = Image.fromarray(_noise(12, 10, 4))
  grey = Image.fromarray(_noise(9, 9))
  made = udp_jax.protect([colour, grey], model, "random_noise", strength="medium")
  assert [(one.mode, one.size) for one in made] == [("RGBA", (10, 12)), ("L", (9, 9))]
  for one, clean in zip(made, (colour, grey)):
    assert _change(np.asarray(one), np.asarray(clean)) == 8
  np.testing.assert_array_equal(made[0].getchannel("A"), colour.getchannel("A"))
  single = udp_jax.protect(colour, model, "random_noise", strength="medium")
  np.testing.assert_array_equal(np.asarray(single), np.asarray(made[0]))
  blurred = udp_jax.purify([colour, grey], "gaussian_blur", sigma=1.0)
  assert [(one.mode, one.size) for one in blurred] == [("RGBA", (10, 12)), ("L", (9, 9))]
  assert udp_jax.verify([colour, grey], made, "medium").ok
  assert not udp_jax.verify([colour, grey], made, 7).ok
  with pytest.raises(ConfigError, match="mode CMYK: convert it to RGB"):
    udp_jax.protect(colour.convert("CMYK"), model, "random_noise")


def test_files_go_the_way_of_the_command(files: list[Path], tmp_path: Path) -> None:
  output = tmp_path / "out"
  made = udp_jax.protect(tmp_path / "in", "tiny_ldm", "random_noise", strength=6, output=output)
  assert made == output
  manifest = marks.read_manifest(output)
  assert manifest is not None and manifest["radius_255"] == 6
  assert manifest["against"]["kind"] == "none" and manifest["config"]["step_size_255"] == 0.75
  clean = tmp_path / "out.work" / "clean"
  assert udp_jax.verify(clean, output).ok and not udp_jax.verify(clean, output, 5).ok
  some = udp_jax.protect(files, "tiny_ldm", "random_noise", strength=6, output=tmp_path / "some")
  assert some == [tmp_path / "some" / name for name in ("b.png", "a.png")]
  # A picture's draws come from its name.
  assert some[0].read_bytes() == (output / "b.png").read_bytes()
  one = udp_jax.purify(files[0], "jpeg", quality=60, output=tmp_path / "jpeg")
  assert one == tmp_path / "jpeg" / "b.png" and Image.open(one).size == (11, 10)
  assert udp_jax.verify(files[0], one, 255).ok


def test_what_is_wrong_with_paths_is_said(files: list[Path], tmp_path: Path, model) -> None:
  protect = {"model": "tiny_ldm", "method": "random_noise", "output": tmp_path / "out"}
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "a.png").write_bytes(files[1].read_bytes())
  for given, message in (
    ([tmp_path / "in", tmp_path / "other"], "one folder, or files, not several folders"),
    ([files[1], tmp_path / "other" / "a.png"], "two files have the same name"),
    ([files[0], tmp_path / "no.png"], "no.png is neither a picture nor a folder"),
  ):
    with pytest.raises(ConfigError, match=message):
      udp_jax.protect(given, **protect)
  with pytest.raises(MissingDataError):
    udp_jax.protect(tmp_path / "nothing", **protect)
  with pytest.raises(ConfigError, match="no manifest says what the budget is"):
    udp_jax.verify(tmp_path / "in", tmp_path / "in")
  with pytest.raises(ConfigError, match="1 clean and 2 protected"):
    udp_jax.verify(files[:1], files, 8)
  with pytest.raises(ConfigError, match="a folder is compared with a folder"):
    udp_jax.verify(tmp_path / "in", files[0], 8)
  with pytest.raises(ConfigError, match="output is needed"):
    udp_jax.purify(files, "jpeg")
  assert not (tmp_path / "out").exists()


def test_kinds_are_told_apart(tmp_path: Path) -> None:
  stack = _noise(2, 4, 4, 3)
  assert calls.take(stack).one_size is not None
  assert calls.take([stack[0], stack[1, :2]]).one_size is None
  assert calls.take(str(tmp_path)).folder == tmp_path
  np.testing.assert_array_equal(calls.take(stack).back([*stack]), stack)
  assert isinstance(calls.take([*stack]).back([*stack]), list)
