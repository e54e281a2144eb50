"""One folder holds one study: which settings may change, and what is cleared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.studies.conftest import set_field
from udp_jax.data import image_set
from udp_jax.errors import ConfigError, UserError
from udp_jax.models import hub
from udp_jax.runtime import workdir
from udp_jax.studies import build, settings, usefulness

pytestmark = pytest.mark.usefixtures("photographs_once")


def test_one_folder_holds_one_study(config, crops, tmp_path: Path) -> None:
  settings.check(config, tmp_path, crops)
  stored = json.loads((tmp_path / "config.json").read_text())
  settings.check(config, tmp_path, crops)
  for field, value in (
    ("rows", ("clean",)),
    ("threat.seeds", (0, 1, 2)),
    ("title", "another"),
    ("performance.steps_per_call", 7),
    ("checkpoint.every_rounds", 7),
  ):
    set_field(config, field, value)
    settings.check(config, tmp_path, crops)
  config.protections.new_row = {"method": "random_noise"}
  settings.check(config, tmp_path, crops)
  stored = (tmp_path / "config.json").read_bytes()
  for field, value, named in (
    ("seed", 1, "seed"),
    ("radius_255", 8.0, "radius_255"),
    ("protections.eudp.a", 0.7, "protections.eudp"),
    ("threat.options.train_steps", 99, "threat.options"),
    ("data.source", "folder:elsewhere", "data.source"),
  ):
    changed = config.copy_and_resolve_references()
    set_field(changed, field, value)
    with pytest.raises(ConfigError, match=rf"another config \({named} differ\)"):
      settings.check(changed, tmp_path, crops)
  with pytest.raises(ConfigError, match=r"\(pictures differ\)"):
    settings.check(config, tmp_path, image_set.take(crops, [0, 1]))
  # Of `performance`, but not of speed alone; where they are not set, they are off.
  for name, off, on in (("joint_gradients", False, True), ("shard_batches", 0, 4)):
    changed = config.copy_and_resolve_references().unlock()
    changed.performance[name] = on
    with pytest.raises(ConfigError, match=rf"another config \(performance.{name} differ\)"):
      settings.check(changed, tmp_path, crops)
    del changed.performance[name]
    settings.check(changed, tmp_path, crops)
    changed.performance[name] = off
    settings.check(changed, tmp_path, crops)
  settings.check(config, tmp_path, crops)
  assert (tmp_path / "config.json").read_bytes() == stored


def test_replacing_a_study_removes_what_belonged_to_it(config, crops, tmp_path: Path) -> None:
  settings.check(config, tmp_path, crops)
  build.write_pictures(crops, tmp_path / "clean")
  (tmp_path / "notes.txt").write_text("mine")
  settings.check(config, tmp_path, crops, replace=True)
  assert (tmp_path / "clean").exists()
  config.seed = 1
  settings.check(config, tmp_path, crops, replace=True)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    workdir.MARK,
    "config.json",
    "notes.txt",
  ]
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("content", ["{", "[]"])
def test_foreign_config_is_not_replaced(content: str, config, crops, tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match="config.json"):
    settings.check(config, tmp_path, crops)
  assert (tmp_path / "config.json").read_text() == content


def test_models_of_the_hub_keep_their_commit(
  config, crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  commits = ["a" * 40, "b" * 40]
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(hub, "_folder", lambda name, what, check: Path("snapshots") / commits[0])
  config = settings.frozen(config, {"model.path": "artist/tiny", "model.vae": "artist/vae@main"})
  changes = settings.pinned(config)
  assert changes == {
    "model.path": f"artist/tiny@{commits[0]}",
    "model.vae": f"artist/vae@{commits[0]}",
  }
  one = settings.frozen(config, changes)
  assert settings.pinned(settings.frozen(config, {"model.path": "tiny_ldm", "model.vae": ""})) == {}
  settings.check(one, tmp_path / "work", crops)
  settings.check(one, tmp_path / "work", crops)
  other = settings.frozen(one, {"model.path": f"artist/tiny@{commits[1]}"})
  with pytest.raises(ConfigError, match="model.path"):
    settings.check(other, tmp_path / "work", crops)


def test_another_autoencoder_of_a_purifier_is_another_study(config, crops, tmp_path: Path) -> None:
  config = config.copy_and_resolve_references().unlock()
  (tmp_path / "taef").mkdir()
  (tmp_path / "taef" / "encoder.npz").write_bytes(b"one")
  config.use_purifiers = ("jpeg", "other_vae")
  config.purifiers = {"other_vae": {"method": "vae_trans", "autoencoder": str(tmp_path / "taef")}}
  settings.check(config, tmp_path / "work", crops)
  settings.check(config, tmp_path / "work", crops)
  (tmp_path / "taef" / "encoder.npz").write_bytes(b"two")
  usefulness._fingerprint.cache_clear()  # Another run is another process.
  with pytest.raises(ConfigError, match=r"contents of purifiers\.other_vae\.autoencoder"):
    settings.check(config, tmp_path / "work", crops)


def test_what_is_replaced_under_its_name_is_another_study(config, crops, tmp_path: Path) -> None:
  config = config.copy_and_resolve_references().unlock()
  config.data.clean_set = f"npz:{tmp_path / 'apart.npz'}"
  np.savez(tmp_path / "apart.npz", images=crops.images[:2])
  work = tmp_path / "work"
  settings.check(config, work, crops)
  settings.check(config, work, crops)
  np.savez(tmp_path / "apart.npz", images=crops.images[1:3])
  with pytest.raises(ConfigError, match=r"\(contents of data.clean_set differ\)"):
    settings.check(config, work, crops)
  # An earlier version's record says nothing of it.
  record = json.loads((work / "config.json").read_text())
  del record["contents"]
  (work / "config.json").write_text(json.dumps(record))
  settings.check(config, work, crops)
  np.savez(tmp_path / "apart.npz", images=crops.images)
  with pytest.raises(ConfigError, match=r"clean_set holds the pictures of config.data.source"):
    settings.check(config, work, crops)
