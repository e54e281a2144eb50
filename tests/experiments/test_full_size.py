"""One picture through `experiments.protect` with models of Stable Diffusion's full size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import full_size
from udp_jax.models import latent, published

# Bytes of memory that a run takes on a CPU, with some room.
_NEEDED = {"sd15": 12 << 30, "sdxl": 22 << 30}


def _holds(found: full_size.Measured) -> None:
  assert 0 < found.changed_255 <= 8
  # Weights are in memory once, beside what the largest of them needs for its conversion.
  assert found.load_peak_mib <= 1.15 * found.weights_mib + 3 * found.largest_mib + 64, found


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_pipeline", "tiny_sdxl"])
def test_a_small_model_made_in_the_same_way(
  fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
  made = request.getfixturevalue(fixture)
  folder = tmp_path / "model"
  full_size.write_model(folder, made.configs, made.scheduler)
  side = made.configs[latent.UNET].sample_size * made.configs[latent.VAE].downscale
  found = full_size.measure(folder, side, "sdxl" if fixture == "tiny_sdxl" else "sd")
  assert 0 < found.changed_255 <= 8 and found.step_s > 0 and found.peak_mib > found.load_peak_mib


@pytest.mark.long
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_two_rounds_of_a_full_model(name: str, tmp_path: Path, record_property) -> None:
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if memory < _NEEDED[name]:
    pytest.skip(f"{name} needs {_NEEDED[name] >> 30} GiB of memory")
  configs, scheduler = published.architecture(name)
  full_size.write_model(tmp_path / name, configs, scheduler)
  side = configs[latent.UNET].sample_size * configs[latent.VAE].downscale
  found = full_size.measure(tmp_path / name, side, "sdxl" if name == "sdxl" else "sd")
  record_property("measured", found._asdict())
  print(name, found)
  _holds(found)
  weights = {"sd15": 2.0, "sdxl": 6.6}[name]  # GiB in bfloat16, vectors in float32.
  assert found.weights_mib == pytest.approx(1024 * weights, rel=0.05)
