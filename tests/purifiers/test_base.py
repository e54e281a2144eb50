"""Options of purifiers: their units, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.purifiers.photographs import apply
from udp_jax import purifiers
from udp_jax.errors import ConfigError


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("diffpure", {"timestep": 51}, "timestep must be 1 to 50, got 51"),
    (
      "diffpure",
      {"timestep": 5, "variance": "learned"},
      "predicts no variance; it has none 'learned'",
    ),
    ("gridpure", {"mix": 1.0}, "mix in"),
    ("gridpure", {"stride": 9}, "stride must be 0 to 8"),
    ("jpeg", {"quality": 0}, "quality must be 1 to 100"),
    ("jpeg", {"codec": "png"}, "codec 'png' is not one of"),
    ("jpeg", {"quality": 1e9}, "quality must be a whole number, or a list of them, 1 to 100, got"),
    ("jpeg", {"quality": (5, 101)}, r"quality must be 1 to 100, got \(5, 101\)"),
    ("jpeg", {"quality": ()}, "quality must be a whole number, or a list"),
    ("jpeg", {"codec": 3}, "codec must be a word, got 3"),
    ("jpeg", {"chroma_subsampling": "yes"}, "chroma_subsampling must be true or false, got 'yes'"),
    ("gaussian_noise", {"std": float("nan")}, "std must be a number, 0 to 10, got nan"),
    ("gaussian_noise", {"std_255": True}, "std_255 must be a number"),
    ("gaussian_blur", {"sigma": 0}, "sigma must be above 0 and at most 100, got 0"),
    ("gaussian_blur", {"kernel_size": 4}, "kernel_size must be odd or 0, got 4"),
    ("bilateral", {"diameter": 4}, "diameter must be odd, 1 to 255, got 4"),
    ("total_variation", {"num_steps": 2.5}, "num_steps must be a whole number, 1 to 1e"),
    ("chain", {"methods": [{"name": "bilateral", "num_passes": -1}]}, "bilateral: num_passes must"),
    ("chain", {"methods": {"name": "jpeg"}}, "methods must be a list of objects"),
    ("resize", {"factor": 1.0}, "factor must be in"),
    ("resize", {"method": "area"}, "method 'area' is not one of"),
    ("chain", {"methods": []}, "at least one method"),
    ("chain", {"methods": [{"quality": 3}]}, "needs a name"),
    ("chain", {}, r"needs the option\(s\) methods"),
    ("impress", {"num_steps": 0}, "num_steps must be 1 to"),
    ("impress", {"perceptual": "eyes"}, "unknown perceptual distance 'eyes'"),
  ],
)
def test_bad_options(name, options, message, latent_model, gaussian_model):
  model = latent_model if name == "impress" else gaussian_model
  with pytest.raises(ConfigError, match=message):
    purifiers.build(name, model, options)


def test_levels_become_the_unit_scale():
  """An option that ends in _255 is in 8-bit levels."""
  images = jnp.full((6, 32, 32, 3), 0.5)
  noisy = apply(purifiers.build("gaussian_noise", None, {"std_255": 5.1}), images)
  assert np.std(noisy) == pytest.approx(0.02, rel=0.02)
