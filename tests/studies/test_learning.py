"""What a tiny latent model learns from windows of two pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import _cli
from udp_jax.data import images
from udp_jax.errors import ConfigError
from udp_jax.studies import learning, pictures, settings

ROW = "random_noise"


@pytest.fixture
def opened(tmp_path, tiny_pipeline_folder):
  """A study and its pictures, with clean and protected files as the study writes them."""
  generator = np.random.default_rng(0)
  config = _cli.get_config("eudp", "demo:smoke")
  with config.unlocked():
    config.model.path = str(tiny_pipeline_folder)
    config.pictures.update({"windows": 6, "smallest_window": 10})
    config.threat.options.train_steps = 1
    config.num_samples = 5
  for name, level in {"dark": 60, "light": 140}.items():
    clean = generator.integers(level, level + 30, (30, 41, 3), np.uint8)
    for place in ("in", "run/clean"):
      images.write_png(tmp_path / place / f"{name}.png", clean)
    images.write_png(tmp_path / "run" / "protected" / ROW / f"{name}.png", clean + 5)
  return pictures.open_pictures(
    settings.frozen(config, {"rows": ("clean", ROW)}),
    tmp_path / "in",
    tmp_path / "run",
    pictures.Cutting(),
    prompt="a photo",
    progress=False,
  )


def test_only_configs_that_name_a_threat_learn() -> None:
  learned = {n for n in _cli.config_names("eudp") if learning.is_asked(_cli.get_config("eudp", n))}
  assert learned == {"demo"}


def test_windows_are_the_same_of_every_row_and_in_turn(opened) -> None:
  study, found = opened
  learner = learning.Learner(study, found)
  clean, protected = learner.windows("clean"), learner.windows(ROW)
  size = study.model.model.image_shape[0]
  assert clean.shape == protected.shape == (6, size, size, 3)
  # Resized alike: what differs is the change alone.
  assert np.abs(protected.astype(int) - clean - 5).max() <= 1
  assert list(clean.mean(axis=(1, 2, 3)) > 115) == [False, True] * 3
  np.testing.assert_array_equal(clean, learner.windows("clean"))


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("img2img", {}, "edits pictures and trains nothing"),
    ("textual_inversion", {}, "needs the option"),
    ("scratch", {"train_steps": 1}, "config.threat.name: scratch does not fine-tune the U-Net"),
  ],
)
def test_threats_that_do_not_fine_tune_the_unet_are_refused(
  opened, name: str, options: dict, message: str
) -> None:
  study, found = opened
  threat = {"name": name, "options": options, "seeds": (0,)}
  config = ConfigDict(study.config.to_dict() | {"threat": threat})
  with pytest.raises(ConfigError, match=message):
    learning.Learner(study._replace(config=config), found)


def test_large_pictures_are_not_learned(opened) -> None:
  study, found = opened
  files = (found.found.files[0], found.found.files[1]._replace(height=65, width=90))
  found = found._replace(found=found.found._replace(files=files))
  learner = learning.Learner(study, found)
  assert [file.name for file in learner.files] == ["dark"]
  assert (learner.windows("clean").mean(axis=(1, 2, 3)) < 115).all()
  config = settings.frozen(study.config, {"pictures.learn_up_to": 20})
  with pytest.raises(ConfigError, match="learn_up_to is 20: no picture is that small"):
    learning.Learner(study._replace(config=config), found)


def test_other_windows_are_another_run(tmp_path, tiny_pipeline_folder) -> None:
  config = _cli.get_config("eudp", "demo:smoke")
  config.rows, config.model.path = ("clean",), str(tiny_pipeline_folder)
  config.pictures.tile_size = 16
  pictures.run(config, tmp_path / "run", evaluate=False, progress=False)
  for name in ("windows", "smallest_window", "learn_up_to"):
    changed = config.copy_and_resolve_references()
    changed.pictures[name] += 1
    with pytest.raises(ConfigError, match="another config"):
      pictures.run(changed, tmp_path / "run", evaluate=False, progress=False)


@pytest.mark.slow
def test_what_is_learned_is_kept(opened, monkeypatch) -> None:
  study, found = opened
  made = learning.Learner(study, found).learned("clean")
  size = study.model.model.image_shape[0]
  assert made.samples.shape == (5, size, size, 3)
  assert made.metrics.keys() == {"loss_learned", "nearest_clean"}
  assert all(np.isfinite(value) and value > 0 for value in made.metrics.values())
  folder = study.workdir / "learned" / "clean"
  assert json.loads((folder / "evaluation.json").read_text()) == made.metrics
  assert not (folder / "checkpoints").exists()
  monkeypatch.setattr("udp_jax.stages.train.train", lambda *_: pytest.fail("trained again"))
  again = learning.Learner(study, found).learned("clean")
  np.testing.assert_array_equal(again.samples, made.samples)
  assert again.metrics == made.metrics
