"""A row's radius is what its files and manifest promise; which model it is protected against."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _cli
from experiments.configs import common
from udp_jax import pictures, promises, protections, stages, study
from udp_jax.data import image_set, manifest, picture_folder
from udp_jax.data.images import read_image
from udp_jax.errors import ConfigError
from udp_jax.matrix import results
from udp_jax.pictures import Tiling
from udp_jax.report import text

CONFIGS = [(e, n) for e in ("eudp", "udp", "impress") for n in _cli.config_names(e)]


def _rows(config) -> list[str]:
  return [row for row in config.protections if row != study.CLEAN]


def _expected(config, row: str) -> float:
  """The radius that a config gives a row, read from the config alone."""
  own = config.protections[row]
  if "radius_255" in own:
    return own["radius_255"]
  return _expected(config, own["of"]) if "of" in own else config.radius_255


@pytest.fixture
def full_delta(monkeypatch: pytest.MonkeyPatch) -> None:
  """In place of rounds: a delta of the whole range, so that only the saved budget holds it."""

  def run_rounds(protection, batches, count: int, **_):
    shape = (count, *batches.images.shape[2:])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], shape).astype(np.float32)
    return np.arange(count), signs

  class Stand:
    needs_reference, drawn_once = False, True

  monkeypatch.setattr(stages, "run_rounds", run_rounds)
  monkeypatch.setattr(study, "build_protection", lambda *_, **__: Stand())
  monkeypatch.setattr(study.placement, "split_weights", lambda model, mesh: model)


@pytest.mark.parametrize(("experiment", "name"), CONFIGS)
def test_every_row_of_every_config_keeps_its_own_radius(
  experiment: str, name: str, full_delta, tmp_path: Path
) -> None:
  config = _cli.get_config(experiment, f"{name}:smoke")
  grey = np.full((2, 6, 6, 3), 128, np.uint8)
  clean = image_set.finish(grey, ["a", "b"], "a test")
  for row in _rows(config):
    saved = study.protect_row(config, row, clean, tmp_path, None, None, progress=False)
    made = manifest.read_manifest(tmp_path / "protected" / row)
    radius = _expected(config, row)
    assert made["radius_255"] == radius
    assert (
      np.abs(saved.astype(int) - grey).max() == math.floor(radius) == made["worst"]["max_abs_255"]
    )
    assert study.row_settings(config, row)[3]["radius_255"] == radius
    if made["against"]["kind"] != "none":
      assert made["against"]["statement"] in promises.statements(config, _rows(config))


def test_photoguard_has_the_radius_of_its_paper() -> None:
  config = _cli.get_config("impress", "photoguard")
  assert config.radius_255 == 16
  assert promises.row_radius_255(config, "photoguard_encoder") == 7.65


def test_full_size_pictures_keep_the_row_s_radius(
  full_delta, gaussian_model, tmp_path: Path
) -> None:
  config = common.study("a test")
  config.protections.weak = {"method": "random_noise", "radius_255": 7.65}
  (tmp_path / "in").mkdir()
  from PIL import Image

  Image.fromarray(np.full((9, 17, 3), 128, np.uint8)).save(tmp_path / "in" / "a.png")
  made = pictures.protect(
    config,
    "weak",
    picture_folder.list_pictures(tmp_path / "in"),
    tmp_path / "work",
    tmp_path / "out",
    gaussian_model,
    None,
    Tiling(8, 2),
    progress=False,
  )
  saved = read_image(tmp_path / "out" / "a.png").pixels.astype(int)
  assert made["radius_255"] == 7.65 and np.abs(saved - 128).max() == 7
  assert made["against"]["kind"] == "none"


def test_reports_say_the_budgets_of_their_rows() -> None:
  config = _cli.get_config("impress", "photoguard:smoke")
  rows = [results._row(config, row) for row in ("clean", "photoguard_encoder", "random_noise")]
  assert [row["radius_255"] for row in rows] == [None, 7.65, 16.0]
  assert text.budget({"rows": rows, "radius_255": 16.0}) == "7.65 to 16"
  assert text.budget({"rows": rows[2:], "radius_255": 16.0}) == "16"


@pytest.mark.parametrize("value", [0, 0.5, -1, 256, float("nan"), float("inf"), "x", True])
def test_a_radius_that_no_file_can_keep(value) -> None:
  config = common.study("a test")
  config.protections.odd = {"method": "random_noise", "radius_255": value}
  with pytest.raises(ConfigError, match=r"config.protections.odd.radius_255 is .* from 1 to 255"):
    promises.row_radius_255(config, "odd")


def test_rows_that_imitate_each_other() -> None:
  config = common.study("a test")
  config.protections.a = {"method": "matched_noise", "of": "b"}
  config.protections.b = {"method": "matched_noise", "of": "a"}
  with pytest.raises(ConfigError, match="a imitates b imitates a"):
    promises.row_radius_255(config, "a")


@pytest.mark.parametrize("name", protections.available())
def test_controls_are_the_methods_without_a_model(name: str, gaussian_model) -> None:
  options = {"radius_255": 8, "step_size_255": 2, "target": "pattern"}
  try:
    built = protections.build(
      name,
      gaussian_model,
      {k: v for k, v in options.items() if k == "radius_255" or name not in protections.CONTROLS}
      if name != "advdm"
      else {"radius_255": 8, "step_size_255": 2},
    )
  except ConfigError:
    assert name not in protections.CONTROLS  # It asks for a latent model, or for other options.
    return
  assert built.drawn_once == (name in protections.CONTROLS)


@pytest.mark.parametrize(
  ("row", "path", "kind", "words"),
  [
    ("random_noise", "tiny_ldm", "none", "evidence for any model: none"),
    ("udp", "", "pixel", "a small pixel DDPM trained on these pictures: not a model that anyone"),
    ("udp", "tiny_ldm", "tiny_ldm", "evidence for Stable Diffusion: none"),
    ("udp_matched_noise", "", "none", "no model"),
  ],
)
def test_what_a_protection_is_worth(row: str, path: str, kind: str, words: str) -> None:
  config = common.study("a test")
  config.model.path = path
  found = promises.against(config, row)
  assert found["kind"] == kind and words in found["statement"]
  assert "\n" not in found["statement"]


def test_a_folder_is_named_without_its_path(tiny_pipeline_folder: Path) -> None:
  config = common.study("a test")
  config.model.path = str(tiny_pipeline_folder)
  found = promises.against(config, "eudp")
  assert found["kind"] == "stable_diffusion" and found["model"] == tiny_pipeline_folder.name
  assert "other models untested" in found["statement"]
  assert str(tiny_pipeline_folder.parent) not in str(found)


LINE_ART = np.full((40, 48, 3), 255, np.uint8)
LINE_ART[10:12, :] = 0
LINE_ART[:, 30:33] = 0
LINE_ART[20:, :20] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))


def _changed(config, row: str, model, params, place: Path) -> tuple[np.ndarray, dict]:
  from PIL import Image

  (place / "in").mkdir(parents=True)
  Image.fromarray(LINE_ART).save(place / "in" / "a.png")
  made = pictures.protect(
    config,
    row,
    picture_folder.list_pictures(place / "in"),
    place / "work",
    place / "out",
    model,
    params,
    Tiling(8, 2),
    progress=False,
  )
  return np.abs(read_image(place / "out" / "a.png").pixels.astype(int) - LINE_ART), made


@pytest.mark.slow
@pytest.mark.parametrize(("row", "gain"), [("sign_noise", 11), ("advdm", 5)])
def test_flat_areas_are_spared(row: str, gain: float, gaussian_model, tmp_path: Path) -> None:
  """Paper-white areas of line art: the whole budget without the option, a quarter with 0.75."""
  config = common.study("a test")
  config.protections.advdm.update({"num_rounds": 6, "step_size_255": 8.0})
  params = gaussian_model.init(jax.random.key(0))
  model, given = gaussian_model, (None if row == "sign_noise" else params)
  plain, before = _changed(config, row, model, given, tmp_path / "plain")
  config.spare_flat = 0.75
  spared, made = _changed(config, row, model, given, tmp_path / "spared")
  flat = np.s_[14:18, 2:26]  # Six pixels and more from every line.
  busy = np.s_[24:, 4:16]
  psnr = [10 * np.log10(255**2 / np.mean(np.square(d[flat]))) for d in (plain, spared)]
  assert plain[flat].max() == 16 and spared[flat].max() == 4
  assert psnr[1] - psnr[0] > gain, psnr
  assert spared[busy].max() == 16  # Nothing is spared where noise hides it.
  assert made["spare_flat"] == {"strength": 0.75, "window": 7, "full_contrast_255": 16.0}
  assert made["radius_255"] == 16 and "spare_flat" not in before


def test_a_pixel_over_its_limit_is_a_bug(tmp_path: Path) -> None:
  clean = np.full((4, 4, 3), 100, np.uint8)
  limit = np.full((4, 4, 1), 4, np.uint8)
  manifest.check_limit(tmp_path / "x.png", clean + 4, clean, limit)
  with pytest.raises(RuntimeError, match="3 values are further"):
    changed = clean.copy()
    changed[1, 2] += 5
    manifest.check_limit(tmp_path / "x.png", changed, clean, limit)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_strength_that_is_none(value: float) -> None:
  config = common.study("a test")
  config.spare_flat = value
  with pytest.raises(ConfigError, match="spare_flat is .*from 0"):
    promises.spared(config)
