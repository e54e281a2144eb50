"""What a study refuses before it starts, and what it keeps apart; no compilation here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import _cli
from udp_jax import judging, run_config, study
from udp_jax.data import image_set, sources, work_folder
from udp_jax.errors import ConfigError, MissingDataError, UserError
from udp_jax.models import factory

pytestmark = pytest.mark.usefixtures("photographs_once")


@pytest.fixture
def config():
  return _cli.get_config("eudp", "cifar10_small:smoke")


def _set(config, field: str, value) -> None:
  *parents, last = field.split(".")
  for part in parents:
    config = config[part]
  with config.ignore_type():
    config[last] = value


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("rows", ("clean", "nope"), "unknown method or row 'nope'; known: advdm, aspl"),
    ("rows", (), "at least one entry"),
    ("rows", ("advdm",), "advdm attacks a trained model: give --model=FOLDER"),
    ("protections.eudp_shuffled.of", None, "eudp_shuffled imitates another row: set config.prot"),
    ("protections.eudp_shuffled.of", "nope", "unknown method or row 'nope'"),
    ("protections.eudp.start", "nope", "unknown start of delta 'nope'"),
    ("protections.eudp.method", "nope", "unknown protection 'nope'"),
    ("protections.eudp.typo", 1, "protection eudp has no option 'typo'"),
    ("threat.seeds", (), "at least one entry"),
    ("threat.name", "nope", "unknown threat 'nope'; known: dreambooth"),
    ("threat.options.decay", "nope", "unknown learning-rate decay 'nope'"),
    ("threat.options.sample_steps", 5000, "sample_steps"),
    ("threat.options.train_steps", 0, "config.threat.options.train_steps is 0; it must be at le"),
    ("num_rounds", 0, "config.num_rounds is 0; it must be at least 1"),
    ("global_batch_size", 0, "global_batch_size is 0"),
    ("radius_255", float("nan"), "radius_255 is nan"),
    ("radius_255", -1.0, "radius_255 is -1"),
    ("num_samples", 1, "num_samples is 1; it must be at least 5"),
    ("checkpoint.every_rounds", 0, "every_rounds is 0"),
    ("performance.dtype", "float8", "unknown dtype 'float8'; known: float32, bfloat16"),
    ("performance.steps_per_call", 0, "steps_per_call is 0"),
    ("model.schedule", "nope", "unknown schedule 'nope'; known: linear"),
    ("model.unet.typo", 1, "typo"),
    ("model.unet.sample_size", 8, "the pictures are 16x16, the model is for 8x8: set --config.da"),
    ("model.path", "/nope", "no folder /nope: a model is a folder"),
    ("evaluation.features", "nope", "unknown feature network 'nope'"),
    ("evaluation.features", "inception_v3", "inception_v3 needs a weight file"),
    ("data.source", "nope", "unknown source 'nope'; use builtin, folder:PATH"),
    ("data.source", "cifar10:/nope.tar.gz", "/nope.tar.gz does not exist"),
    ("data.classes", ("dragon",), "no class dragon; it has "),
    ("data.limit", 3, "cannot hold out 8 of 3 images"),
    ("data.holdout", 0.0, "0 of 24 pictures are held out, judging needs 5 or more: set --conf"),
    ("data.holdout", 24.0, "cannot hold out 24 of 24 images"),
    ("data.holdout", -3.0, "config.data.holdout is -3.0; it must be at least 0"),
  ],
)
def test_mistakes_are_found_before_anything_is_written(
  field: str, value, message: str, config, tmp_path: Path
) -> None:
  _set(config, field, value)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    study.run_study(config, tmp_path / "run", progress=False)
  assert raised.value.exit_code == 2
  assert not (tmp_path / "run").exists()


def test_a_new_method_needs_no_row_in_the_config(config) -> None:
  del config.protections["random_noise"]
  assert study.row_settings(config, "random_noise") == (
    "random_noise", 6, None, {"radius_255": 16.0},
  )  # fmt: skip


def test_row_settings_join_shared_and_own_options(config) -> None:
  config.protections.udp.step_size_255 = 0.5
  method, rounds, of, options = study.row_settings(config, "udp")
  assert (method, rounds, of) == ("udp", 6, None)
  assert options["radius_255"] == 16 and options["step_size_255"] == 0.5
  assert study.row_settings(config, "eudp")[3]["step_size_255"] == 2.0
  assert study.row_settings(config, "udp_shuffled")[:3] == ("shuffled_delta", 6, "udp")
  assert study.row_settings(config, "sign_noise")[3] == {
    "distribution": "sign", "radius_255": 16.0,
  }  # fmt: skip


@pytest.mark.parametrize(("holdout", "held"), [(0.25, 6), (6.0, 6), (0.0, 0)])
def test_holdout_is_a_fraction_or_a_number(holdout: float, held: int, config) -> None:
  config.data.holdout = holdout
  clean, held_out = study.load_data(config)
  assert len(held_out.images) == held
  assert not set(clean.names) & set(held_out.names)
  assert clean.images.shape[1:] == (16, 16, 3)


@pytest.fixture(scope="module")
def pictures(photographs_once) -> image_set.ImageSet:
  return sources.load("builtin", image_size=16, limit=8)


def test_one_folder_holds_one_study(config, pictures, tmp_path: Path) -> None:
  run_config.check(config, tmp_path, pictures)
  stored = json.loads((tmp_path / "config.json").read_text())
  run_config.check(config, tmp_path, pictures)
  for field, value in (
    ("rows", ("clean",)),
    ("threat.seeds", (0, 1, 2)),
    ("title", "another"),
    ("performance.steps_per_call", 7),
    ("checkpoint.every_rounds", 7),
  ):
    _set(config, field, value)
    run_config.check(config, tmp_path, pictures)
  config.protections.new_row = {"method": "random_noise"}
  run_config.check(config, tmp_path, pictures)
  stored = (tmp_path / "config.json").read_bytes()
  for field, value, named in (
    ("seed", 1, "seed"),
    ("radius_255", 8.0, "radius_255"),
    ("protections.eudp.a", 0.7, "protections.eudp"),
    ("threat.options.train_steps", 99, "threat.options"),
    ("data.source", "folder:elsewhere", "data.source"),
  ):
    changed = config.copy_and_resolve_references()
    _set(changed, field, value)
    with pytest.raises(ConfigError, match=rf"another config \({named} differ\)"):
      run_config.check(changed, tmp_path, pictures)
  with pytest.raises(ConfigError, match=r"\(pictures differ\)"):
    run_config.check(config, tmp_path, image_set.take(pictures, [0, 1]))
  # Of `performance`, but not of speed alone; where they are not set, they are off.
  for name, off, on in (("joint_gradients", False, True), ("shard_batches", 0, 4)):
    changed = config.copy_and_resolve_references().unlock()
    changed.performance[name] = on
    with pytest.raises(ConfigError, match=rf"another config \(performance.{name} differ\)"):
      run_config.check(changed, tmp_path, pictures)
    del changed.performance[name]
    run_config.check(changed, tmp_path, pictures)
    changed.performance[name] = off
    run_config.check(changed, tmp_path, pictures)
  run_config.check(config, tmp_path, pictures)
  assert (tmp_path / "config.json").read_bytes() == stored


def test_replacing_a_study_removes_what_belonged_to_it(config, pictures, tmp_path: Path) -> None:
  run_config.check(config, tmp_path, pictures)
  study.write_pictures(pictures, tmp_path / "clean")
  (tmp_path / "notes.txt").write_text("mine")
  run_config.check(config, tmp_path, pictures, replace=True)
  assert (tmp_path / "clean").exists()
  config.seed = 1
  run_config.check(config, tmp_path, pictures, replace=True)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    work_folder.MARK,
    "config.json",
    "notes.txt",
  ]
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("content", ["{", "[]"])
def test_foreign_config_is_not_replaced(content: str, config, pictures, tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match="config.json"):
    run_config.check(config, tmp_path, pictures)
  assert (tmp_path / "config.json").read_text() == content


def test_finished_reference_is_kept(pictures, tmp_path: Path) -> None:
  study.write_pictures(pictures, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
  study.write_pictures(image_set.take(pictures, [0]), tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


def test_sizes_are_compared_with_the_model(config, pictures) -> None:
  model = factory.build(config.model, config.performance)[0]
  study.check_sizes(config, pictures, model)
  wide = pictures._replace(images=np.zeros((2, 16, 24, 3), np.uint8))
  with pytest.raises(ConfigError, match="the pictures are 24x16, the model is for 16x16"):
    study.check_sizes(config, wide, model)


def test_spread_over_seeds_leaves_out_what_has_no_meaning() -> None:
  found = judging.spread([{"fd": 1.0, "psnr": None}, {"fd": 3.0, "psnr": None}])
  assert found["fd"]["mean"] == 2.0 and found["fd"]["std"] == pytest.approx(2**0.5)
  assert found["psnr"]["mean"] is None


def test_missing_source_is_missing_data(config) -> None:
  config.data.source = "folder:/nowhere"
  with pytest.raises(MissingDataError, match="/nowhere"):
    study.load_data(config)


@pytest.mark.parametrize(
  ("row", "joint", "rounds"),
  [("eudp", False, 6), ("eudp", True, 6), ("random_noise", False, 1), ("udp", True, 6)],
)
def test_every_round_is_made_but_for_what_is_drawn_once(
  row: str, joint: bool, rounds: int, config, pictures, tmp_path: Path, monkeypatch
) -> None:
  with config.unlocked():
    config.performance.joint_gradients = joint
  asked: dict = {}
  monkeypatch.setattr(study.stages, "protect_stage", lambda *_, **options: asked.update(options))
  model = factory.build(config.model, config.performance)[0]
  study.protect_row(config, row, pictures, tmp_path, model, None)
  assert asked["num_rounds"] == rounds == (1 if row == "random_noise" else config.num_rounds)
