"""Models of the package, of a cache laid out as Hugging Face's, and of folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from udp_jax.errors import ConfigError
from udp_jax.studies import available_models as models


@pytest.fixture
def hub(tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch) -> Path:
  """A cache with a pipeline of ours and one of a class that is not supported."""
  hub = tmp_path / "hub"
  mine = hub / "models--someone--small-model" / "snapshots" / "0123456789abcdef"
  mine.parent.mkdir(parents=True)
  mine.symlink_to(tiny_pipeline_folder)
  other = hub / "models--someone--flux" / "snapshots" / "fedcba9876543210"
  (other / "transformer").mkdir(parents=True)
  (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
  (other / "transformer" / "config.json").write_text("{}")
  (hub / "datasets--someone--pictures" / "snapshots" / "0").mkdir(parents=True)
  for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_HOME", str(tmp_path))
  return hub


def test_the_cache_is_where_their_tools_look(hub: Path, tmp_path: Path, monkeypatch) -> None:
  assert models.hub_cache() == hub
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
  assert models.hub_cache() == tmp_path / "elsewhere"
  for name in ("HF_HUB_CACHE", "HF_HOME"):
    monkeypatch.delenv(name)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  assert models.hub_cache() == tmp_path / "cache" / "huggingface" / "hub"
  assert list(models.cached(tmp_path / "nothing")) == []


def test_a_folder_says_what_it_is(hub: Path, tiny_pipeline_folder: Path) -> None:
  said = models.describe("mine", str(tiny_pipeline_folder))
  assert said.startswith("mine: a latent diffusion model")
  assert f"Stable Diffusion as it is in the folder {tiny_pipeline_folder.name}" in said
  assert said.endswith(f"--model={tiny_pipeline_folder}")
  with pytest.raises(ConfigError, match="Flux"):
    models.describe("flux", str(hub / "models--someone--flux" / "snapshots" / "fedcba9876543210"))


def test_the_package_and_the_cache_are_named(hub: Path) -> None:
  names = [name for name, _ in models.available()]
  assert names == ["tiny_ldm", "someone/flux at fedcba9", "someone/small-model at 0123456"]
