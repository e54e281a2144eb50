"""The trained model in the package: it reconstructs photographs, predicts noise and draws."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.data import sources
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.image import to_float
from udp_jax.ops.similarity import psnr
from udp_jax.studies.tiny_ldm import denoiser

FOLDER = pipeline_lib.resolve("tiny_ldm")


@pytest.fixture(scope="module")
def tiny() -> pipeline_lib.Pipeline:
  return pipeline_lib.load_pipeline("tiny_ldm")


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
  return sources.load("builtin", image_size=64, limit=4, seed=3).images


def test_fits_into_the_package(tiny) -> None:
  weights = sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors"))
  assert 1e6 < weights <= 12e6
  assert tiny.model.image_shape == (64, 64, 3) and tiny.model.shape == (16, 16, 4)
  assert tiny.tokenizer is not None
  assert len(tiny.tokenizer) == tiny.configs["text_encoder"].vocab_size
  index = json.loads((FOLDER / "model_index.json").read_text())
  assert index["_class_name"] == "StableDiffusionPipeline"
  card = (FOLDER / "README.md").read_text()
  for needed in ("licence", "held out", "PSNR", "python -m experiments.train_ldm", "CIFAR-10"):
    assert needed.lower() in card.lower()


@pytest.fixture(scope="module")
def there_and_back(tiny, photographs) -> tuple[jax.Array, jax.Array]:
  """Latents of the photographs, and what is made of them again."""

  @jax.jit
  def both(images):
    keys = jax.random.split(jax.random.key(0), len(images))
    x0 = tiny.model.encode(tiny.params, images, keys)
    return x0, tiny.model.decode(tiny.params, x0)

  return both(to_float(photographs))


@pytest.mark.slow
def test_reconstructs_photographs(there_and_back, photographs) -> None:
  images, (x0, made) = to_float(photographs), there_and_back
  # Crops of photographs that blur, noise or another picture's latents would miss by far.
  assert float(psnr(images, made).mean()) > 26.0
  assert float(psnr(images, jnp.roll(made, 1, axis=0)).mean()) < 16.0
  # What the U-Net is made for: unit variance.
  assert 0.6 < float(x0.std()) < 1.6


@pytest.mark.slow
def test_predicts_noise(tiny, there_and_back) -> None:
  x0, _ = there_and_back
  model = tiny.model._replace(encode=lambda params, latents, keys: latents)
  objective = jax.jit(denoising(model, timesteps.uniform(model.schedule.num_steps)))
  keys = jax.random.split(jax.random.key(0), len(x0))
  ids = jnp.asarray(tiny.tokenizer(["a photo of a car"] * len(x0)))
  losses, _ = objective(tiny.params, x0, ids, keys)
  # 1 is what predicting nothing costs.
  assert float(losses.mean()) < 0.6


@pytest.mark.slow
def test_draws_what_is_asked_for(tiny) -> None:
  ids = tiny.tokenizer(["a photo of a car", "a painting by vincent van gogh", ""])
  drawn = denoiser.sample(
    tiny.model,
    tiny.params,
    jax.random.key(0),
    ids[[0, 0, 1, 1]],
    ids[2],
    num_steps=8,
    guidance_scale=3.0,
    sampler_options={"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
  )
  assert drawn.shape == (4, 64, 64, 3) and np.isfinite(drawn).all()
  # Pictures, neither grey nor noise: contrast, most of it between distant pixels.
  assert (drawn.std(axis=(1, 2, 3)) > 0.08).all()
  assert np.abs(np.diff(drawn, axis=1)).mean() < 0.5 * drawn.std()
