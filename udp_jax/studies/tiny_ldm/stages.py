"""The stages of `experiments.train_ldm`, each resumable, in one working folder.

workdir/data.json       sources, counts, and the names of everything held out
workdir/autoencoder/    checkpoints, metrics.jsonl; vae/ once it is trained
workdir/denoiser/       checkpoints, metrics.jsonl
workdir/model/          a StableDiffusionPipeline folder, written last
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udp_jax.data import batches
from udp_jax.models import performance as performance_lib
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.models import weights
from udp_jax.models.base import Params
from udp_jax.models.clip_text import CLIPTextConfig
from udp_jax.models.pipeline import Pipeline
from udp_jax.models.sd_unet import UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from udp_jax.objectives import clipping, training
from udp_jax.objectives.denoising import denoising, flipped
from udp_jax.ops import timesteps
from udp_jax.ops.keys import stream
from udp_jax.runtime import mesh
from udp_jax.stages import train
from udp_jax.stages.records import Run
from udp_jax.studies.tiny_ldm import autoencoder, denoiser
from udp_jax.studies.tiny_ldm.captioned import Captioned


def train_autoencoder(
  config: Any, pictures: Captioned, folder: Path, *, progress: bool = True
) -> tuple[AutoencoderKL, Params]:
  """Trains the autoencoder, measures its scaling factor and writes folder/vae.

  Args:
    config: settings of `experiments.train_ldm`.
    pictures: training pictures and captions.
    folder: scratch folder, for checkpoints and metrics.jsonl.
    progress: whether to show a progress bar.

  Returns:
    The autoencoder, with its scaling factor set, and its averaged parameters.
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
  objective = performance_lib.precisely(
    autoencoder.reconstruction(
      vae, gradient_weight=settings.gradient_weight, kl_weight=settings.kl_weight
    ),
    config.performance,
  )
  tx = optimiser(settings)
  learned = np.concatenate([pictures.images, pictures.extra])
  # Shuffled: each lane of the batch shuffles its own pictures, and must see every kind.
  learned = learned[np.random.default_rng(config.seed).permutation(len(learned))]
  params = vae.init(stream(key, "init"), jnp.zeros((1, size, size, 3)))["params"]
  state = train.fit(
    training.make_update(flipped(objective), tx, ema_decay=settings.ema_decay),
    training.init_state(params, tx, ema=True),
    batches.make_batches(learned, settings.global_batch_size),
    _run(config, folder, key, "autoencoder", progress),
    train_steps=settings.train_steps,
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
    config: settings of `experiments.train_ldm`.
    vae: the trained autoencoder with its scaling factor, from `train_autoencoder`.
    vae_params: its parameters, which are not trained.
    pictures: training pictures and captions.
    folder: scratch folder, for checkpoints and metrics.jsonl.
    progress: whether to show a progress bar.
  """
  key = stream(jax.random.key(config.seed), "denoiser")
  settings = config.denoiser
  tokenizer, configs, scheduler = _describe(config, vae.config, pictures)
  model = pipeline_lib.build_model(configs, scheduler, config.performance)
  # The latents of a mirrored picture are not the mirrored latents, so both are stored.
  both = np.concatenate([pictures.images, pictures.images[:, :, ::-1]])
  moments = autoencoder.encode_all(vae, vae_params, both, config.performance.encode_batch_size)
  order = np.random.default_rng(config.seed).permutation(len(both))
  concepts = np.concatenate([pictures.concepts, pictures.concepts])
  data = batches.make_batches(moments[order], settings.global_batch_size, cond=concepts[order])
  on_latents = denoiser.on_moments(model, vae.config.scaling_factor)
  uniform = timesteps.uniform(model.schedule.num_steps)
  objective = denoiser.captioned(
    denoising(on_latents, uniform),
    denoiser.caption_table(tokenizer, pictures.captions),
    settings.drop_captions,
  )
  tx = optimiser(settings)
  params = model.init(stream(key, "init"))
  del params["vae"]  # Not trained, so neither the optimiser nor checkpoints hold it.
  state = train.fit(
    denoiser.make_update(objective, tx, ema_decay=settings.ema_decay),
    training.init_state(params, tx, ema=True),
    data,
    _run(config, folder, key, "denoiser", progress),
    train_steps=settings.train_steps,
  )
  assert state.ema_params is not None
  return Pipeline(model, state.ema_params | {"vae": vae_params}, tokenizer, configs, scheduler)


def _run(config: Any, folder: Path, key: jax.Array, label: str, progress: bool) -> Run:
  return Run(
    mesh=mesh.make_mesh(jax.devices()[:1]),
    folder=folder,
    key=key,
    label=label,
    checkpoint_every=config.checkpoint.every_steps,
    steps_per_call=config.performance.steps_per_call,
    progress=progress,
  )


def _describe(
  config: Any, vae: AutoencoderKLConfig, pictures: Captioned
) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
  """Returns the tokenizer, trained on the captions, and the configs of all parts and scheduler."""
  texts = [text for alternatives in pictures.captions for text in alternatives]
  # 256 bytes, the same 256 at the end of a word, and two special tokens, beside the merges.
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
  # The other fields are those of Stable Diffusion 1.x's own file.
  rest: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
  rest |= {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
  scheduler = dict(config.schedule.items()) | rest
  return tokenizer, {"unet": unet, "vae": vae, "text_encoder": text}, scheduler


def optimiser(options: Any) -> optax.GradientTransformation:
  """Adam with linear warm-up, cosine decay to 0, and gradients clipped to norm 1."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, options.learning_rate, max(1, options.warmup_steps), max(2, options.train_steps)
  )
  return optax.chain(clipping.clip_by_global_norm(1.0), optax.adam(rate))
