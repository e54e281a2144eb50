"""A row's radius is what its files and manifest promise; which model it is protected against."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _cli
from experiments.configs import common
from udp_jax import protections
from udp_jax.data import image_set, manifest, marks, picture_files
from udp_jax.data.images import read_image
from udp_jax.errors import ConfigError
from udp_jax.models import sharded
from udp_jax.models.context import Model
from udp_jax.report import text
from udp_jax.runtime import mesh
from udp_jax.stages import protect
from udp_jax.stages.records import Row
from udp_jax.stages.tiles import Pictures, Tiling
from udp_jax.studies import build, pictures, rows
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import results

CONFIGS = [
  pytest.param(e, n, marks=[] if n in ("demo", "demo_pixels", "photoguard") else pytest.mark.slow)
  for e in ("eudp", "udp", "impress")
  for n in _cli.config_names(e)
]


def _rows(config) -> list[str]:
  return [row for row in config.protections if row != marks.CLEAN]


def _expected(config, row: str) -> float:
  """The radius that a config gives a row, read from the config alone."""
  own = config.protections[row]
  if "radius_255" in own:
    return own["radius_255"]
  return _expected(config, own["of"]) if "of" in own else config.radius_255


def _protect_folder(config, row: str, model: Model, place: Path) -> dict:
  """Protects place/in into place/out, by tiles of 8 pixels."""
  found = picture_files.list_pictures(place / "in")
  study = Study(config, place / "work", model, mesh.make_mesh(), progress=False)
  tiled = Pictures(found, Tiling(8, 2), place / "work")
  return pictures.protect_row(study, row, tiled, place / "out")


@pytest.fixture
def full_delta(monkeypatch: pytest.MonkeyPatch) -> None:
  """In place of rounds: a delta of the whole range, so that only the saved budget holds it."""

  def run_rounds(row, model, batches, count: int, run):
    shape = (count, *batches.images.shape[2:])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], shape).astype(np.float32)
    return np.arange(count), signs

  class Stand:
    needs_reference, drawn_once = False, True

  monkeypatch.setattr(protect, "run_rounds", run_rounds)
  monkeypatch.setattr(protect, "build_protection", lambda *_, **__: Stand())
  monkeypatch.setattr(sharded, "split_weights", lambda model, mesh: model)


@pytest.mark.parametrize(("experiment", "name"), CONFIGS)
def test_every_row_of_every_config_keeps_its_own_radius(
  experiment: str, name: str, full_delta, tmp_path: Path
) -> None:
  config = _cli.get_config(experiment, f"{name}:smoke")
  grey = np.full((2, 6, 6, 3), 128, np.uint8)
  clean = image_set.finish(image_set.ImageSet(grey, ["a", "b"]), "a test")
  for row in _rows(config):
    study = Study(config, tmp_path, Model(None), mesh.make_mesh(), progress=False)
    saved = build.protect_row(study, row, clean)
    made = manifest.read_manifest(tmp_path / "protected" / row)
    radius = _expected(config, row)
    assert made["radius_255"] == radius
    most = np.abs(saved.astype(int) - grey).max()
    # A grey of 128 has no more than 127 levels above it, and 128 below.
    assert most == made["worst"]["max_abs_255"] and (
      most == math.floor(radius) or radius > most > 126
    )
    assert rows.settings(config, row).options["radius_255"] == radius
    if made["against"]["kind"] != "none":
      assert made["against"]["statement"] in rows.statements(config, _rows(config))


def test_photoguard_has_the_radius_of_its_paper() -> None:
  config = _cli.get_config("impress", "photoguard")
  assert rows.row_radius_255(config, "photoguard_encoder") == 7.65
  assert rows.row_radius_255(config, "photoguard_diffusion") == 255  # Its budget is L2 alone.


def test_full_size_pictures_keep_the_row_s_radius(
  full_delta, gaussian_model, tmp_path: Path
) -> None:
  config = common.study("a test")
  config.protections.weak = {"method": "random_noise", "radius_255": 7.65}
  (tmp_path / "in").mkdir()
  from PIL import Image

  Image.fromarray(np.full((9, 17, 3), 128, np.uint8)).save(tmp_path / "in" / "a.png")
  made = _protect_folder(config, "weak", Model(gaussian_model), tmp_path)
  saved = read_image(tmp_path / "out" / "a.png").pixels.astype(int)
  assert made["radius_255"] == 7.65 and np.abs(saved - 128).max() == 7
  assert made["against"]["kind"] == "none"


def test_reports_say_the_budgets_of_their_rows() -> None:
  config = _cli.get_config("impress", "photoguard:smoke")
  config.protections.random_noise.radius_255 = 16.0
  rows = [results._row(config, row) for row in ("clean", "photoguard_encoder", "random_noise")]
  assert [row["radius_255"] for row in rows] == [None, 7.65, 16.0]
  assert text.budget({"rows": rows, "radius_255": 16.0}) == "7.65 to 16"
  assert text.budget({"rows": rows[2:], "radius_255": 16.0}) == "16"


@pytest.mark.parametrize("value", [0, 0.5, -1, 256, float("nan"), float("inf"), "x", True])
def test_a_radius_that_no_file_can_keep(value) -> None:
  config = common.study("a test")
  config.protections.odd = {"method": "random_noise", "radius_255": value}
  with pytest.raises(ConfigError, match=r"config.protections.odd.radius_255 is .* from 1 to 255"):
    rows.row_radius_255(config, "odd")


def test_rows_that_imitate_each_other() -> None:
  config = common.study("a test")
  config.protections.a = {"method": "matched_noise", "of": "b"}
  config.protections.b = {"method": "matched_noise", "of": "a"}
  with pytest.raises(ConfigError, match="a imitates b imitates a"):
    rows.row_radius_255(config, "a")


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
  found = rows.against(config, row)
  assert found["kind"] == kind and words in found["statement"]
  assert "\n" not in found["statement"]


def test_a_folder_is_named_without_its_path(tiny_pipeline_folder: Path) -> None:
  config = common.study("a test")
  config.model.path = str(tiny_pipeline_folder)
  found = rows.against(config, "eudp")
  assert found["kind"] == "stable_diffusion" and found["model"] == tiny_pipeline_folder.name
  assert "other models untested" in found["statement"]
  assert str(tiny_pipeline_folder.parent) not in str(found)


def test_a_manifest_says_what_a_surrogate_trained_on_and_a_budget_in_l2(tmp_path: Path) -> None:
  config = _cli.get_config("impress", "photoguard")
  made = rows.record(config, "photoguard_diffusion")
  # An L2 ball of 16 on [-1, 1] is the only promise: 255 levels are none.
  assert made["radius_255"] == 255 and made["l2_radius_255"] == 8.0 * 255
  assert "l2_radius_255" not in rows.record(config, "photoguard_encoder")
  config = common.study("a test")
  config.protections.alone = {"method": "aspl"}
  assert "before protection" in rows.record(config, "alone")["surrogate_pictures"]
  assert "clean_set" not in rows.settings(config, "alone").options
  config.data.clean_set = str(tmp_path / "mine")
  for row in ("alone", "fsmg"):
    assert rows.record(config, row)["surrogate_pictures"] == "clean set mine"
    assert rows.settings(config, row).options["clean_set"] == config.data.clean_set
  assert "surrogate_pictures" not in rows.record(config, "udp")
  assert "clean_set" not in rows.settings(config, "udp").options


LINE_ART = np.full((40, 48, 3), 255, np.uint8)


LINE_ART[10:12, :] = 0


LINE_ART[:, 30:33] = 0


LINE_ART[20:, :20] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))


def _changed(config, row: str, model: Model, place: Path) -> tuple[np.ndarray, dict]:
  from PIL import Image

  (place / "in").mkdir(parents=True)
  Image.fromarray(LINE_ART).save(place / "in" / "a.png")
  made = _protect_folder(config, row, model, place)
  return np.abs(read_image(place / "out" / "a.png").pixels.astype(int) - LINE_ART), made


@pytest.mark.slow
@pytest.mark.parametrize(("row", "gain"), [("sign_noise", 11), ("advdm", 5)])
def test_flat_areas_are_spared(row: str, gain: float, gaussian_model, tmp_path: Path) -> None:
  """Paper-white areas of line art: the whole budget without the option, a quarter with 0.75."""
  config = common.study("a test")
  config.protections.advdm.update({"num_rounds": 6, "step_size_255": 8.0})
  params = gaussian_model.init(jax.random.key(0))
  model = Model(gaussian_model, None if row == "sign_noise" else params)
  plain, before = _changed(config, row, model, tmp_path / "plain")
  config.spare_flat = 0.75
  spared, made = _changed(config, row, model, tmp_path / "spared")
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
    rows.spared(config)


pytestmark = pytest.mark.usefixtures("photographs_once")


def test_a_new_method_needs_no_row_in_the_config(config) -> None:
  del config.protections["random_noise"]
  row = rows.settings(config, "random_noise")
  assert row == Row("random_noise", "random_noise", {"radius_255": 16.0}, 6, 16.0)


def test_row_settings_join_shared_and_own_options(config) -> None:
  config.protections.udp.step_size_255 = 0.5
  udp = rows.settings(config, "udp")
  assert (udp.method, udp.num_rounds, udp.imitates) == ("udp", 6, None)
  assert udp.options["radius_255"] == 16 and udp.options["step_size_255"] == 0.5
  assert rows.settings(config, "eudp").options["step_size_255"] == 2.0
  shuffled = rows.settings(config, "udp_shuffled")
  assert (shuffled.method, shuffled.num_rounds, shuffled.imitates) == ("shuffled_delta", 6, "udp")
  sign = rows.settings(config, "sign_noise")
  assert sign.options == {"distribution": "sign", "radius_255": 16.0}


@pytest.mark.parametrize(
  ("row", "label", "control"),
  [
    ("clean", "Clean", True),
    ("random_noise", "Sign noise, full strength", True),
    ("mist_noise", "Mist, matched noise", True),
    ("mist_adaptive", "Mist, adaptive", False),
    ("mist_low", "Mist, low-pass", False),
    ("photoguard_encoder", "PhotoGuard (encoder)", False),
    ("strong", "strong", False),
  ],
)
def test_names(row: str, label: str, control: bool, named_config) -> None:
  assert rows.label(named_config, row, full=True) == label
  assert rows.is_control(named_config, row) == control
