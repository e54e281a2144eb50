"""Settings of speed and memory as options of modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from udp_jax.errors import ConfigError
from udp_jax.models import performance
from udp_jax.ops import attention


def test_defaults():
  expected = attention.FUNCTIONS[attention.default()]
  assert performance.module_options() == {
    "attention": expected,
    "dtype": jnp.float32,
    "conv_method": None,
    "remat": False,
  }
  assert performance.vae_slices() == 1 and performance.frozen_dtype() == jnp.float32


def test_settings_reach_the_modules():
  given = ConfigDict(
    {
      "dtype": "bfloat16",
      "conv_method": "direct",
      "attention": "library",
      "remat": True,
      "vae_slices": 4,
      "frozen_dtype": "bfloat16",
      "steps_per_call": 50,
    }
  )
  options = performance.module_options(given)
  assert options["dtype"] == performance.frozen_dtype(given) == jnp.bfloat16
  assert options["conv_method"] == "direct" and options["remat"]
  assert options["attention"] is attention.library_attention
  assert performance.vae_slices(given) == 4
  # Which falls back by itself from cuDNN for the VAE's one head of 512 channels.
  assert performance.vae_options(given) == options
  given["vae_attention"] = "dot_product"
  assert performance.vae_options(given)["attention"] is attention.dot_product_attention
  assert performance.vae_options({"attention": "chunked"})["attention"] is (
    attention.chunked_attention
  )


@pytest.mark.parametrize(
  "given, message",
  [
    ({"dtype": "float8"}, "unknown dtype 'float8'; known: float32, bfloat16"),
    ({"frozen_dtype": "int4"}, "unknown dtype 'int4'"),
    ({"conv_method": "fft"}, "unknown conv_method 'fft'"),
    ({"attention": "linear"}, "unknown attention 'linear'"),
    ({"vae_attention": "linear"}, "unknown attention 'linear'"),
    ({"vae_slices": 0}, "vae_slices must be a whole number from 1 on, not 0"),
  ],
)
def test_unusable_settings_are_named(given, message):
  with pytest.raises(ConfigError, match=message):
    performance.module_options(given)
    performance.vae_options(given)
    performance.vae_slices(given)
    performance.frozen_dtype(given)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="where it runs")
def test_flash_attention_elsewhere_is_refused():
  with pytest.raises(ConfigError, match="TPUs only"):
    performance.module_options({"attention": "flash"})


def test_the_defaults_of_another_backend():
  # What `launch.aot` compiles for is not what it runs on.
  long = performance.module_options({"backend": "tpu"}, long=True)
  assert long["attention"] is attention.flash_attention and long["conv_method"] == "xla"
  short = performance.module_options({"backend": "tpu"})["attention"]
  assert short.func is attention.dot_product_attention and short.keywords == {"wide": False}
  assert performance.vae_options({"backend": "tpu"})["attention"] is attention.chunked_attention
  # The TPU's kernel does not take the VAE's one head of 512 channels, nor does cuDNN's, but
  # "library" falls back by itself.
  gpu = performance.module_options({"backend": "gpu"})
  assert performance.vae_options({"backend": "gpu"})["attention"] is attention.library_attention
  assert gpu["attention"] is attention.library_attention and gpu["conv_method"] == "xla"
  assert performance.module_options({"backend": "cpu"})["conv_method"] == "winograd"
