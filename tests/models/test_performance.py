"""Settings of speed and memory as options of modules."""

from __future__ import annotations

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from udp_jax.errors import ConfigError
from udp_jax.models import factory, performance, pipeline, toy
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import attention, timesteps

UNET = {
  "sample_size": 8,
  "block_out_channels": (8, 8),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 4,
}
VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def test_defaults():
  expected = attention.FUNCTIONS[attention.default()]
  assert performance.module_options() == {
    "attention": expected,
    "dtype": jnp.float32,
    "conv_method": None,
    "remat": False,
    "fused": True,
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
    ({"precision": "fp8"}, "unknown precision 'fp8'; known: \"\", highest, tf32, bf16"),
    ({"precision": "tensorfloat32", "backend": "cpu"}, "unknown precision 'tensorfloat32'"),
  ],
)
def test_unusable_settings_are_named(given, message):
  with pytest.raises(ConfigError, match=message):
    performance.module_options(given)
    performance.vae_options(given)
    performance.vae_slices(given)
    performance.frozen_dtype(given)
    performance.precisely(len, given)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="where it runs")
def test_frozen_parts_and_the_vae_of_xl():
  """Both text encoders go together; a VAE computed in float32 keeps float32 weights."""
  dtype, parts = performance.frozen({"frozen_dtype": "bfloat16"})
  assert dtype == jnp.bfloat16 and set(parts) == {"vae", "text_encoder", "text_encoder_2"}
  given = {"dtype": "bfloat16", "frozen_dtype": "bfloat16", "vae_dtype": "float32"}
  assert set(performance.frozen(given)[1]) == {"text_encoder", "text_encoder_2"}
  assert performance.vae_options(given)["dtype"] == jnp.float32
  assert performance.module_options(given)["dtype"] == jnp.bfloat16


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


@pytest.mark.parametrize("backend", ["", "cpu", "tpu", "gpu"])
@pytest.mark.parametrize("name", ["", "library", "chunked", "dot_product"])
def test_what_is_made_apart(backend, name):
  """On TPUs always; on GPUs what cuDNN may take: the text too, and a transformer's sequences."""
  given = {"backend": backend, "attention": name}
  apart = backend == "gpu" and name in ("", "library")
  options = performance.transformer_options(given)
  assert options.pop("text_attention") is (attention.library_attention if apart else None)
  found = (options, performance.module_options(given), performance.vae_options(given))
  assert [each["fused"] for each in found] == [not (apart or backend == "tpu")] * 3
  kept = performance.vae_options(given | {"vae_attention": "chunked"})
  assert kept["fused"] == (backend != "tpu") and kept["attention"] is attention.chunked_attention


@pytest.mark.parametrize(
  ("network", "blocks"),
  [(UNet2D(UNet2DConfig(**UNET)), 4), (AutoencoderKL(AutoencoderKLConfig(**VAE)), 2)],
  ids=["pixels", "autoencoder"],
)
def test_every_block_of_attention_obeys(network, blocks):
  """Three products in place of one."""
  given = [jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)]
  if blocks == 4:
    given.append(jax.ShapeDtypeStruct((1,), jnp.int32))

  def count(fused):
    tried = network.clone(fused=fused, conv_method="xla")
    variables = jax.eval_shape(tried.init, jax.random.key(0), *given)
    return sum(products(jax.jit(tried.apply).lower(variables, *given).as_text()).values())

  assert count(False) - count(True) == 2 * blocks


def test_a_model_stays_as_it_is_where_there_is_one_precision():
  model = toy.on_pixels()
  for given in ({}, {"precision": "", "backend": "gpu"}, {"precision": "bf16", "backend": "cpu"}):
    assert performance.precise(model, given) == model
  precise = performance.precise(model, {"precision": "bf16", "backend": "gpu"})
  assert precise.init is model.init and precise.apply is not model.apply
  assert precise.embed is None


def test_the_callers_precision_has_priority():
  asked = {"precision": "tf32", "backend": "gpu"}
  seen = performance.precisely(lambda: jax.config.jax_default_matmul_precision, asked)
  assert seen() == "default"
  with jax.default_matmul_precision("highest"):
    assert seen() == "highest"
  assert jax.config.jax_default_matmul_precision is None


def products(text: str) -> Counter:
  """How many products and convolutions a lowered program has of each precision."""
  found: Counter = Counter()
  for line in text.splitlines():
    for kind in ("dot_general", "convolution"):
      if f"stablehlo.{kind}" in line:
        names = set(re.findall(r"\b(DEFAULT|HIGHEST|HIGH)\b", line)) or {"DEFAULT"}
        if "lhs_precision_type = bf16" in line:
          names = {"BF16"}
        found[kind, *sorted(names)] += 1
  return found


def of_pixels(settings):
  given = {"path": "", "unet": UNET, "schedule": "linear", "num_train_timesteps": 50}
  return factory.build(ConfigDict(given), ConfigDict(settings))[0], None


@pytest.fixture(scope="module")
def of_latents(tiny_pipeline):
  def build(settings):
    model = pipeline.build_model(tiny_pipeline.configs, tiny_pipeline.scheduler, settings)
    return model, jax.ShapeDtypeStruct((2, 6), jnp.int32)

  return build


def gradients(model, token_ids):
  """The loss of two pictures and its gradients, for the pictures and for the weights."""
  objective = denoising(model, timesteps.uniform(50))

  def loss(params, images, keys, ids):
    cond = None if ids is None else model.embed(params, ids)
    return objective(params, images, cond, keys)[0].sum()

  params = jax.eval_shape(model.init, jax.random.key(0))
  images = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(params, images, keys, token_ids)


@pytest.mark.parametrize("kind", ["pixels", pytest.param("latents", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize(
  ("precision", "dots", "convolutions"),
  [
    ("", "DEFAULT", "DEFAULT"),
    ("highest", "HIGHEST", "HIGHEST"),
    ("tf32", "HIGH", "HIGH"),
    # A preset for products says nothing of convolutions.
    ("bf16", "BF16", "DEFAULT"),
  ],
)
def test_every_product_of_loss_and_gradient_has_the_precision(
  kind: str, backend: str, precision: str, dots: str, convolutions: str, of_latents
) -> None:
  build = of_pixels if kind == "pixels" else of_latents
  # Of the backend that is lowered for, also where this process's backend would do otherwise.
  given = build({"backend": backend, "precision": precision})
  platform = "cuda" if backend == "gpu" else "tpu"
  found = products(gradients(*given).lower(lowering_platforms=(platform,)).as_text())
  if backend == "tpu" and precision == "bf16":  # One pass is what a TPU does by default.
    dots = "DEFAULT"
  if backend == "gpu" and precision == "tf32":  # HIGH would be float32 in Triton's kernels.
    dots = convolutions = "DEFAULT"
  assert set(found) == {("dot_general", dots), ("convolution", convolutions)}
  assert min(found.values()) > 20
