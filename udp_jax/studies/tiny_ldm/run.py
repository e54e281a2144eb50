"""The whole run of `experiments.train_ldm`: both stages, the model's folder, sample pictures.

workdir/config.json     settings of the run; another config is refused
workdir/data.json       sources, counts, and the names of everything held out
workdir/autoencoder/    checkpoints, metrics.jsonl; vae/ once it is trained
workdir/denoiser/       checkpoints, metrics.jsonl
workdir/model/          a StableDiffusionPipeline folder
workdir/results.json    reconstruction PSNR, losses; with reconstructions.png, samples.png and
                        losses.png; written last
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from udp_jax.metrics.denoising import one_draw
from udp_jax.models import noise_scheduler
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.models.pipeline import Pipeline
from udp_jax.models.sd_vae import AutoencoderKL
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import image, timesteps
from udp_jax.ops.keys import stream
from udp_jax.runtime import files
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.studies.tiny_ldm import autoencoder, captioned, denoiser, figures, stages
from udp_jax.studies.tiny_ldm.captioned import Captioned

_FREE = ("title", "checkpoint", "performance", "samples")  # These do not affect training.
_COLUMNS = 8


def run(config: Any, workdir: Path, *, progress: bool = True) -> dict[str, Any]:
  """Trains both stages in `workdir`, resuming if possible; returns the contents of results.json.

  Raises:
    ConfigError: `workdir` holds a run of another config.
    MissingDataError, BadDataError: pictures are missing or damaged.
    DivergedError, OutputError, Preempted: as `loop.run`.
  """
  _check_config(config, workdir)
  pictures = captioned.load(config.data, config.image_size, config.seed)
  files.write_json(workdir / "data.json", pictures.record)
  vae, vae_params = stages.train_autoencoder(
    config, pictures, workdir / "autoencoder", progress=progress
  )
  pipeline = stages.train_denoiser(
    config, vae, vae_params, pictures, workdir / "denoiser", progress=progress
  )
  pipeline_lib.save_pipeline_folder(workdir / "model", pipeline)
  results = {
    "reconstruction": _reconstruct(config, vae, vae_params, pictures, workdir),
    "denoising": _denoising_loss(config, pipeline, pictures),
    "scaling_factor": vae.config.scaling_factor,
    "parameters": {n: _size(part) for n, part in pipeline.params.items()},
  }
  _draw(config, pipeline, pictures, workdir)
  stage_names = ("autoencoder", "denoiser")
  figures.write_losses(
    workdir / "losses.png", {name: workdir / name / "metrics.jsonl" for name in stage_names}
  )
  files.write_json(workdir / "results.json", results)
  return results


def _check_config(config: Any, workdir: Path) -> None:
  """Writes workdir/config.json, or refuses to continue with another model or other data."""
  new = json.loads(files.to_json(config.to_dict()))

  def changed(old: dict[str, Any]) -> list[str]:
    return [n for n in sorted({*old, *new}) if old.get(n) != new.get(n) and n not in _FREE]

  workdir_lib.claim(workdir / workdir_lib.CONFIG, new, changed)


def _reconstruct(
  config: Any, vae: AutoencoderKL, params: Any, pictures: Captioned, workdir: Path
) -> dict[str, Any]:
  """Returns PSNR on held-out pictures by concept; writes pairs of them as reconstructions.png."""
  held = pictures.holdout
  made = autoencoder.reconstruct_all(vae, params, held, config.performance.encode_batch_size)
  psnr = autoencoder.held_out_psnr(held, made)
  names = ["unknown concepts", *(alternatives[0] for alternatives in pictures.captions)]
  found = {}
  for concept in sorted(set(pictures.holdout_concepts.tolist())):
    values = psnr[pictures.holdout_concepts == concept]
    found[names[concept + 1]] = {"pictures": len(values), "psnr": round(float(values.mean()), 2)}
  shown = _some_of_each(pictures.holdout_concepts, 2 * _COLUMNS, config.seed)
  pairs = [held[shown], np.asarray(image.quantise(jnp.asarray(made[shown])))]
  rows = [part[i : i + _COLUMNS] for i in range(0, len(shown), _COLUMNS) for part in pairs]
  _write_grid(workdir / "reconstructions.png", np.concatenate(rows), min(_COLUMNS, len(shown)))
  return found


def _some_of_each(concepts: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Returns the rows of `count` random pictures, cycling through the concepts."""
  order = np.random.default_rng(seed).permutation(len(concepts))
  turn = np.zeros(len(order), int)
  for concept in np.unique(concepts):
    members = concepts[order] == concept
    turn[members] = np.arange(members.sum())
  return order[np.argsort(turn, kind="stable")][:count]


def _denoising_loss(config: Any, pipeline: Pipeline, pictures: Captioned) -> dict[str, float]:
  """Mean squared error of the predicted noise on held-out and training pictures, with captions."""
  assert pipeline.tokenizer is not None
  model = pipeline.model
  table = denoiser.caption_table(pipeline.tokenizer, pictures.captions)[:, 0]
  objective = jax.jit(denoising(model, timesteps.uniform(model.schedule.num_steps)))
  known = pictures.holdout_concepts >= 0
  parts = {
    "held_out": (pictures.holdout[known], pictures.holdout_concepts[known]),
    "learned": (pictures.images, pictures.concepts),
  }
  found = {}
  for name, (levels, concepts) in parts.items():
    chosen = np.random.default_rng(config.seed).permutation(len(levels))[:512]
    size = min(config.performance.encode_batch_size, len(chosen))
    losses = []
    for start in range(0, len(chosen) - size + 1, size):
      rows = chosen[start : start + size]
      key, cond = stream(jax.random.key(config.seed), name), jnp.asarray(table[concepts[rows]])
      losses.append(one_draw(objective, pipeline.params, levels[rows], cond, key, 0, rows))
    found[name] = round(float(np.concatenate(losses).mean()), 4)
  return found


def _draw(config: Any, pipeline: Pipeline, pictures: Captioned, workdir: Path) -> None:
  """Writes samples of every concept as samples.png, one row per concept."""
  assert pipeline.tokenizer is not None
  settings = config.samples
  ids = denoiser.caption_table(pipeline.tokenizer, pictures.captions)[:, 0]
  options = noise_scheduler.sampler_options(pipeline.scheduler, "ddim", latent=True)
  drawn = denoiser.sample(
    pipeline.model,
    pipeline.params,
    stream(jax.random.key(config.seed), "samples"),
    np.repeat(ids[:-1], settings.each, axis=0),
    ids[-1],
    num_steps=settings.num_steps,
    guidance_scale=settings.guidance_scale,
    sampler_options=options,
  )
  _write_grid(
    workdir / "samples.png", np.asarray(image.quantise(jnp.asarray(drawn))), settings.each
  )


def _write_grid(path: Path, levels: np.ndarray, columns: int) -> None:
  """Writes a grid as a PNG of 256 colours, small enough to ship with the model."""
  cells = np.asarray(image.grid(levels, columns, fill=255))
  buffer = io.BytesIO()
  Image.fromarray(cells).quantize(256).save(buffer, "PNG", optimize=True)
  files.write_bytes(path, buffer.getvalue())


def _size(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))
