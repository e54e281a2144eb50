"""The file of a measurement: round trip, and the models that it is not for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import _cli
from udp_jax.data import config_changes, image_set
from udp_jax.errors import BadDataError, ConfigError, MissingDataError, OutputError
from udp_jax.metrics.usefulness import Usefulness
from udp_jax.models import factory
from udp_jax.models.context import Model
from udp_jax.ops import schedules, timesteps
from udp_jax.stages import protect
from udp_jax.studies import rows, settings, usefulness

VALUES = np.array([[1.0, 3.0, -1.0], [2.0, 4.0, 1.0]])
FOUND = Usefulness(np.array([0, 10, 30, 50]), VALUES)


@pytest.fixture
def model(tiny_model, tmp_path: Path) -> Model:
  factory.save(tmp_path / "ddpm", tiny_model.model, tiny_model.config, tiny_model.params)
  return Model(tiny_model.model, tiny_model.params, tiny_model.config)


@pytest.fixture
def file(model, tmp_path: Path) -> Path:
  pictures = image_set.finish(image_set.ImageSet(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"]), "x")
  path = str(tmp_path / "ddpm")
  record = usefulness.describe(
    FOUND, path, model.model, pictures, {"seed": 0, "draws": 2}, model.unet
  )
  usefulness.write(tmp_path / "measured", record)
  return tmp_path / "measured" / usefulness.FILE


def test_round_trip(file: Path, model: Model, tmp_path: Path) -> None:
  record = json.loads(file.read_text())
  assert record["usefulness"] == [1.5, 3.5, 0.0] and record["timesteps"] == [4.5, 19.5, 39.5]
  np.testing.assert_allclose(record["se"], [0.5, 0.5, 1.0])
  abar = schedules.linear(50, beta_end=0.2).alphas_cumprod
  np.testing.assert_allclose(record["alphas_cumprod"], abar[[4, 20, 40]])
  uniform = record["expected"][0]
  assert (uniform["a"], uniform["b"], uniform["more"]) == (0, 0, 0)
  np.testing.assert_allclose(uniform["ascent"], (VALUES @ [0.2, 0.4, 0.4]).mean())
  early = timesteps.schedule_power(model.model.schedule, 2.0, 0.0)
  by_power = VALUES @ [early[:10].sum(), early[10:30].sum(), early[30:].sum()]
  np.testing.assert_allclose(record["expected"][3]["ascent"], by_power.mean(), rtol=1e-6)
  probs = usefulness.read(str(file.parent), str(tmp_path / "ddpm"), model.model)
  np.testing.assert_array_equal(probs, timesteps.measured([4.5, 19.5, 39.5], [1.5, 3.5, 0], 50))
  assert (file.parent / usefulness.FIGURE).read_text().startswith("<svg xmlns=")
  # It may be measured again, but nothing else is replaced.
  usefulness.write(file.parent, record)
  file.write_text("{}")
  with pytest.raises(OutputError, match="no measurement of ours"):
    usefulness.write(file.parent, record)
  with pytest.raises(BadDataError, match="no measurement of timesteps"):
    usefulness.read(str(file), "")


def test_another_model_is_refused(file: Path, model: Model, tiny_model, tmp_path: Path) -> None:
  other = tmp_path / "other"
  params = {**tiny_model.params, "conv_in": {**tiny_model.params["conv_in"]}}
  params["conv_in"]["bias"] = params["conv_in"]["bias"] + 1
  factory.save(other, tiny_model.model, tiny_model.config, params)
  with pytest.raises(ConfigError, match=r"another model \(ddpm\) than .*other, by their weights"):
    usefulness.read(str(file), str(other))
  # A model that is trained from scratch has no weights yet: size and schedule are what is known.
  fresh = model.model
  assert usefulness.read(str(file), "", fresh).shape == (50,)
  longer = fresh._replace(schedule=schedules.linear(60))
  with pytest.raises(ConfigError, match="its schedule_sha256 is another one"):
    usefulness.read(str(file), "", longer)
  larger = fresh._replace(image_shape=(16, 16, 3))
  with pytest.raises(ConfigError, match="its image_shape is another one"):
    usefulness.read(str(file), "", larger)
  assert usefulness.read(str(file), "", fresh, model.unet).shape == (50,)
  wider = dataclasses.replace(model.unet, layers_per_block=2)
  with pytest.raises(ConfigError, match="its unet_sha256 is another one"):
    usefulness.read(str(file), "", fresh, wider)
  with pytest.raises(MissingDataError, match=r"no file .*nowhere; `python -m experiments.timest"):
    usefulness.read(str(tmp_path / "nowhere"), "")
  with pytest.raises(ConfigError, match=r'probs="measured" needs config.model.timestep_probs'):
    usefulness.read("", "tiny_ldm")


def test_the_packages_model_brings_its_own() -> None:
  """Its file belongs to its weights as they are, and peaks where its card says."""
  probs = usefulness.read("tiny_ldm", "tiny_ldm")
  np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)
  assert probs.shape == (1000,) and 200 < probs.argmax() < 350
  assert config_changes.measurement("tiny_ldm").is_file()


def test_rows_of_a_config_draw_by_the_file(file: Path, model: Model, tmp_path: Path) -> None:
  config = _cli.get_config("eudp", "demo_pixels")
  changes = {"model.path": str(tmp_path / "ddpm"), "model.timestep_probs": str(file)}
  for name in ("udp", "eudp", "advdm"):
    changes[f"protections.{name}.probs"] = "measured"
  config = settings.frozen(config, changes)
  for name in ("udp", "eudp", "advdm"):
    row = rows.settings(config, name, model)
    assert row.options["probs"] == "measured"  # In reports and records.
    np.testing.assert_array_equal(row.probs, usefulness.read(str(file), ""))
    assert protect.build_protection(row, model.model, trained=True).perturb_steps >= 1
  assert rows.settings(config, "random_noise", model).probs is None
  with pytest.raises(ConfigError, match="probs is 'mesured'; it may be \"measured\""):
    rows.settings(settings.frozen(config, {"protections.udp.probs": "mesured"}), "udp", model)


def test_a_file_that_is_measured_again_is_another_setting(file: Path, tmp_path: Path) -> None:
  config = _cli.get_config("eudp", "demo_pixels")
  before = config_changes.recorded(config)
  # Records of before know no such field.
  old = {**before, "model": {k: v for k, v in before["model"].items() if k != "timestep_probs"}}
  assert config_changes.changed(old, before) == []
  config.model.timestep_probs = str(file.parent)
  once = config_changes.recorded(config)
  assert "model.timestep_probs" in config_changes.changed(before, once)
  file.write_text(file.read_text() + "\n")
  again = config_changes.recorded(config)
  assert config_changes.changed(once, again) == ["model.timestep_probs_sha256"]
