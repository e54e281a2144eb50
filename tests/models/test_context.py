"""What belongs to a model: prompts where there are any, and options that a config cannot say."""

from __future__ import annotations

import numpy as np

from udp_jax.models.context import Model


def test_a_latent_model_has_prompts(tiny_pipeline) -> None:
  model = Model(tiny_pipeline.model, tiny_pipeline.params, pipeline=tiny_pipeline)
  assert model.is_latent and model.tokenizer is tiny_pipeline.tokenizer
  texts = ["a photograph of a cat", "the sea at night"]
  ids = np.asarray(tiny_pipeline.tokenizer(texts))
  np.testing.assert_array_equal(model.token_ids(texts), ids)
  assert model.uncond_ids == tuple(np.asarray(tiny_pipeline.tokenizer([""]))[0])
  expected = tiny_pipeline.model.embed(tiny_pipeline.params, ids)
  np.testing.assert_allclose(model.embeddings(texts), expected, rtol=1e-5, atol=1e-6)


def test_options_of_a_latent_model_are_its_folder_s(make_tiny_pipeline) -> None:
  for channels, paints in ((4, False), (9, True)):
    pipeline = make_tiny_pipeline(in_channels=channels)
    options = Model(pipeline.model, pipeline.params, pipeline=pipeline).for_options
    assert options == {"scheduler": pipeline.scheduler, "inpainting_unet": paints}


def test_a_pixel_model_has_none(gaussian_model) -> None:
  model = Model(gaussian_model)
  assert not model.is_latent and model.tokenizer is None
  assert model.uncond_ids is None and model.token_ids(["a cat"]) is None
  assert model.embeddings(["a cat"]) is None and model.for_options == {}
