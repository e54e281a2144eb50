"""One picture through `experiments.protect` with models of Stable Diffusion's full size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import full_size
from udp_jax.models import latent, published

# Bytes of memory that a run takes on a CPU, with some room.
_NEEDED = {"sd15": 12 << 30, "sdxl": 22 << 30}


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_sdxl"])
def test_a_small_model_made_in_the_same_way(
  fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
  made = request.getfixturevalue(fixture)
  folder = tmp_path / "model"
  full_size.write_model(folder, made.configs, made.scheduler, made.tokenizer)
  side = made.configs[latent.UNET].sample_size * made.configs[latent.VAE].downscale
  loaded = full_size.load(folder)
  found = full_size.protect(folder, side, "sdxl" if fixture == "tiny_sdxl" else "sd")
  assert 0 < found.changed_255 <= 8 and found.step_s > 0 and found.peak_mib > loaded.weights_mib


@pytest.mark.long
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_two_rounds_of_a_full_model(name: str, tmp_path: Path, record_property) -> None:
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if memory < _NEEDED[name]:
    pytest.skip(f"{name} needs {_NEEDED[name] >> 30} GiB of memory")
  configs, scheduler = published.architecture(name)
  full_size.write_model(tmp_path / name, configs, scheduler)
  side = configs[latent.UNET].sample_size * configs[latent.VAE].downscale
  loaded = full_size.load(tmp_path / name)
  found = full_size.protect(tmp_path / name, side, "sdxl" if name == "sdxl" else "sd")
  for measured in (loaded, found):
    record_property(type(measured).__name__, measured._asdict())
    print(name, measured)
  assert 0 < found.changed_255 <= 8
  # Weights are in memory once, beside what the largest of them needs for its conversion.
  assert loaded.load_peak_mib <= 1.15 * loaded.weights_mib + 3 * loaded.largest_mib, loaded
