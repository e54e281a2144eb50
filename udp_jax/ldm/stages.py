"""The stages of `experiments.train_ldm`, each resumable, in one working folder.

workdir/data.json       sources, counts, and the names of everything held out
workdir/autoencoder/    checkpoints, metrics.jsonl; vae/ when it is done
workdir/denoiser/       checkpoints, metrics.jsonl
workdir/model/          a StableDiffusionPipeline folder, written last
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax import objectives, training
from udp_jax.ldm import autoencoder, denoiser, fit
from udp_jax.ldm.captioned import Captioned
from udp_jax.models import performance as performance_lib
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.models import weights
from udp_jax.models.base import Params
from udp_jax.models.clip_text import CLIPTextConfig
from udp_jax.models.pipeline import Pipeline
from udp_jax.models.sd_unet import UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from udp_jax.ops import timesteps
from udp_jax.randomness import stream


def train_autoencoder(
  config: Any, pictures: Captioned, folder: Path, *, progress: bool = True
) -> tuple[AutoencoderKL, Params]:
  """Trains the autoencoder, measures its scaling factor and writes folder/vae.

  Args:
    config: of `experiments.train_ldm`.
    pictures: what it learns.
    folder: for checkpoints and metrics.jsonl.
    progress: show a bar.

  Returns:
    The autoencoder, its scaling factor set, and its averaged parameters.
  """
  fields = dict(config.vae.items()) | {"sample_size": config.image_size}
  vae = AutoencoderKL(
    AutoencoderKLConfig(**fields), **performance_lib.vae_options(config.performance)
  )
  size = config.image_size
  key = stream(jax.random.key(config.seed), "autoencoder")
  template = jax.eval_shape(vae.init, key, jnp.zeros((1, size, size, 3)))["params"]
  if (folder / "vae" / "config.json").is_file():
    raw, tensors = weights.load_pretrained(folder / "vae", class_name="AutoencoderKL")
    params = jax.device_put(weights.from_torch_names(tensors, template))
    return vae.clone(config=AutoencoderKLConfig.from_dict(raw)), params
  settings = config.autoencoder
  objective = autoencoder.reconstruction(
    vae, gradient_weight=settings.gradient_weight, kl_weight=settings.kl_weight
  )
  tx = fit.optimiser(settings)
  learned = np.concatenate([pictures.images, pictures.extra])
  # In no order: lanes of the batch, which shuffle apart, all see every kind of picture.
  learned = learned[np.random.default_rng(config.seed).permutation(len(learned))]
  params = vae.init(stream(key, "init"), jnp.zeros((1, size, size, 3)))["params"]
  state = fit.fit(
    training.make_update(objectives.flipped(objective), tx, ema_decay=settings.ema_decay),
    training.init_state(params, tx, ema=True),
    training.make_batches(learned, settings.global_batch_size),
    key=key,
    folder=folder,
    train_steps=settings.train_steps,
    steps_per_call=config.performance.steps_per_call,
    checkpoint_every=config.checkpoint.every_steps,
    label="autoencoder",
    progress=progress,
  )
  params = state.ema_params
  sample = pictures.images[:: max(1, len(pictures.images) // 2000)]
  moments = autoencoder.encode_all(vae, params, sample, config.performance.encode_batch_size)
  factor = autoencoder.scaling_factor(moments)
  fields = vars(vae.config) | {"scaling_factor": round(factor, 5)}
  vae = vae.clone(config=AutoencoderKLConfig(**fields))
  weights.save_pretrained(folder / "vae", vae.config.to_dict(), params, class_name="AutoencoderKL")
  return vae, params


def train_denoiser(
  config: Any,
  vae: AutoencoderKL,
  vae_params: Params,
  pictures: Captioned,
  folder: Path,
  *,
  progress: bool = True,
) -> Pipeline:
  """Trains U-Net and text encoder on captioned latents; returns the whole model.

  Args:
    config: of `experiments.train_ldm`.
    vae: of `train_autoencoder`; its scaling factor counts.
    vae_params: its parameters, which stay as they are.
    pictures: with their captions.
    folder: for checkpoints and metrics.jsonl.
    progress: show a bar.
  """
  key = stream(jax.random.key(config.seed), "denoiser")
  settings = config.denoiser
  tokenizer, configs, scheduler = _describe(config, vae.config, pictures)
  model = pipeline_lib.build_model(configs, scheduler, config.performance)
  # The mirror images' latents are not the latents' mirror images, so both are kept.
  both = np.concatenate([pictures.images, pictures.images[:, :, ::-1]])
  moments = autoencoder.encode_all(vae, vae_params, both, config.performance.encode_batch_size)
  order = np.random.default_rng(config.seed).permutation(len(both))
  concepts = np.concatenate([pictures.concepts, pictures.concepts])
  data = training.make_batches(moments[order], settings.global_batch_size, cond=concepts[order])
  on_latents = denoiser.on_moments(model, vae.config.scaling_factor)
  uniform = timesteps.uniform(model.schedule.num_steps)
  objective = denoiser.captioned(
    objectives.denoising(on_latents, uniform),
    denoiser.caption_table(tokenizer, pictures.captions),
    settings.drop_captions,
  )
  tx = fit.optimiser(settings)
  params = model.init(stream(key, "init"))
  del params["vae"]  # Not trained: kept out of the optimiser and the checkpoints.
  state = fit.fit(
    denoiser.make_update(objective, tx, ema_decay=settings.ema_decay),
    training.init_state(params, tx, ema=True),
    data,
    key=key,
    folder=folder,
    train_steps=settings.train_steps,
    steps_per_call=config.performance.steps_per_call,
    checkpoint_every=config.checkpoint.every_steps,
    label="denoiser",
    progress=progress,
  )
  assert state.ema_params is not None
  return Pipeline(model, state.ema_params | {"vae": vae_params}, tokenizer, configs, scheduler)


def _describe(
  config: Any, vae: AutoencoderKLConfig, pictures: Captioned
) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
  """The tokenizer, learned from the captions, and the configs of all parts and the scheduler."""
  texts = [text for alternatives in pictures.captions for text in alternatives]
  # 256 bytes, the same at the end of a word, and two marks, beside the merges.
  tokenizer = train_tokenizer(texts, 514 + config.vocabulary_merges)
  width = config.text_encoder.hidden_size
  end = tokenizer.token_id(EOS)
  ids: dict[str, Any] = {
    "bos_token_id": tokenizer.token_id(BOS),
    "eos_token_id": end,
    "pad_token_id": end,
  }
  text = CLIPTextConfig(
    **config.text_encoder, **ids, vocab_size=len(tokenizer), projection_dim=width
  )
  unet = UNet2DConditionConfig(
    **config.unet,
    sample_size=config.image_size // vae.downscale,
    in_channels=vae.latent_channels,
    out_channels=vae.latent_channels,
    cross_attention_dim=width,
  )
  # The rest as in Stable Diffusion 1.x's own file.
  rest: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
  rest |= {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
  scheduler = dict(config.schedule.items()) | rest
  return tokenizer, {"unet": unet, "vae": vae, "text_encoder": text}, scheduler
