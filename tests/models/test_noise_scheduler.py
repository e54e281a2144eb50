"""What scheduler_config.json says of sampling."""

from __future__ import annotations

import pytest

from udp_jax.errors import BadDataError
from udp_jax.models.noise_scheduler import sampler_options

STABLE_DIFFUSION_1 = {
  "_class_name": "PNDMScheduler",
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "clip_sample": True,
}


@pytest.mark.parametrize(
  "sampler, expected",
  [
    ("ddim", {"spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    ("ddpm", {"spacing": "leading", "steps_offset": 1, "variance": "fixed_small"}),
    ("dpm_solver_pp_2m", {"spacing": "linspace", "steps_offset": 1}),
  ],
)
def test_a_field_that_is_not_there_means_the_samplers_default(sampler, expected):
  options = sampler_options(STABLE_DIFFUSION_1, sampler, latent=True)
  assert options == {"clip_sample": False, **expected}
  spaced = STABLE_DIFFUSION_1 | {"timestep_spacing": "trailing"}
  assert sampler_options(spaced, sampler, latent=True)["spacing"] == "trailing"


def test_pixels_are_clipped_unless_the_file_says_no():
  assert sampler_options(None, "ddim", latent=False)["clip_sample"]
  assert not sampler_options({"clip_sample": False}, "ddim", latent=False)["clip_sample"]
  assert not sampler_options({"clip_sample": True}, "ddim", latent=True)["clip_sample"]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"timestep_spacing": "karras"}, "timestep_spacing 'karras'"),
    ({"variance_type": "learned"}, "variance_type 'learned'"),
    ({"thresholding": True}, "thresholding"),
    ({"clip_sample_range": 2.0}, "clip_sample_range"),
  ],
)
def test_unsupported_settings_are_named(fields, message):
  with pytest.raises(BadDataError, match=message):
    sampler_options(fields, "ddpm", latent=False)
