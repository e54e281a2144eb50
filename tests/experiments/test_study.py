"""The main of `eudp` and `udp`: what it needs, and what it prints of what was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import _cli
from udp_jax.errors import ConfigError


@pytest.fixture
def study(load_entry_point):
  """The module, with the flags of `experiments.eudp` at their defaults."""
  load_entry_point("experiments.eudp").parse()
  from experiments import _study

  return _study


def test_what_is_missing_is_named(study, tmp_path: Path) -> None:
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  with pytest.raises(ConfigError, match="--config is needed"):
    study.main(None, str(tmp_path))
  with pytest.raises(ConfigError, match="--workdir is needed"):
    study.main(config, "")
  config.data.source = ""
  with pytest.raises(ConfigError, match="--config.data.source is needed: a folder of pictures"):
    study.main(config, str(tmp_path / "run"))
  assert list(tmp_path.iterdir()) == []


def test_pictures_and_sets_are_different_studies(
  study, tmp_path: Path, monkeypatch, capsys
) -> None:
  """A config with `pictures` protects files as they are; others train a model on every row."""
  asked: list[str] = []
  monkeypatch.setattr(study, "_run_pictures", lambda config, folder: asked.append("pictures"))
  monkeypatch.setattr(study, "_run_study", lambda config, folder: asked.append("study"))
  for name in ("demo_pixels", "tiny_ldm"):
    config = _cli.get_config("eudp", f"{name}:smoke")
    if not config.data.source:
      config.data.source = str(tmp_path)
    assert study._run(config, tmp_path / "run") == 0
  assert asked == ["study", "pictures"]
  said = capsys.readouterr().out.splitlines()
  place = f"protected pictures, a folder a row: {tmp_path / 'run' / 'protected'}"
  assert said.count(place) == 2
  assert any(line.startswith("protected against a small pixel DDPM") for line in said)
