"""A folder goes through a purifier as a config says; tests/stages/test_purify.py has the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.errors import ConfigError
from udp_jax.studies import purifying, settings
from udp_jax.studies.configs.purification import purification


@pytest.fixture
def asked(tmp_path: Path) -> purifying.Asked:
  (tmp_path / "in").mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
  return purifying.Asked(tmp_path / "in", tmp_path / "out", tmp_path / "work", progress=False)


def test_the_manifest_says_what_was_done(asked: purifying.Asked) -> None:
  config = settings.frozen(purification("jpeg", quality=30), {"seed": 5})
  made, pictures = purifying.purify_folder(config, asked)
  assert (made["method"], made["seed"], made["options"]["quality"]) == ("jpeg", 5, 30)
  assert pictures.origin["count"] == 1 and [one["file"] for one in made["images"]] == ["a.png"]
  assert (asked.output / "a.png").is_file()


def test_what_cannot_be_run_writes_nothing(asked: purifying.Asked) -> None:
  config = purification("jpeg")
  for changes, message in (
    ({"per_device_batch_size": 0}, "config.per_device_batch_size is 0"),
    ({"steps_per_call": -1}, "config.steps_per_call is -1"),
    ({"options": {"quality": 30, "typo": 1}}, "no option 'typo'"),
  ):
    with pytest.raises(ConfigError, match=message):
      purifying.purify_folder(settings.frozen(config, changes), asked)
  assert not asked.output.exists() and not asked.workdir.exists()
