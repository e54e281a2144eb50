"""Runs threats on folders of pictures: edits, or samples of a model trained on the pictures.

Compiled functions are made once for a threat and shared by all of its cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from udp_jax import registry
from udp_jax.data import manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.metrics.batches import over_pictures
from udp_jax.models import prompts
from udp_jax.models.base import Params
from udp_jax.ops.image import quantise, to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.stages import sample, train
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import plan as plan_lib
from udp_jax.studies.matrix import subject as subject_lib
from udp_jax.studies.matrix.plan import Cell
from udp_jax.threats import Edit, Threat

# Fields of config.threats.<name> that the matrix reads and that are no constructor options.
OWN = (
  "prompt",  # of edits, and of training pictures; default config.prompt
  "negative_prompt",  # default config.negative_prompt
  "sample_prompt",  # of samples; default the training prompt
  "mask",  # of inpainting: which part is repainted, see `MASKS`
  "class_prompt",  # of DreamBooth's class pictures
  "num_class_images",
  "batch_size",  # of training, over all devices; default config.global_batch_size
  "init_word",  # of textual inversion: where the new word starts
  "num_vectors",
  "templates",  # of textual inversion: "object" or "style"
)


def _masks(which: str, count: int, size: tuple[int, int]) -> np.ndarray:
  """Returns masks (N, H, W, 1) float32, 1 where a picture is repainted.

  Raises:
    ConfigError: the mask is unknown.
  """
  if which not in MASKS:
    raise ConfigError(f"unknown mask {which!r}; known: {', '.join(MASKS)}")
  height, width = size
  inside = np.zeros((height, width, 1), np.float32)
  inside[height // 4 : height - height // 4, width // 4 : width - width // 4] = 1.0
  one = inside if which == "centre" else 1.0 - inside
  return np.broadcast_to(one, (count, *one.shape))


MASKS = ("centre", "surroundings")


class EditCells:
  """Edits the pictures of any cell with one threat that trains nothing."""

  folder = "edits"

  def __init__(self, study: Study, name: str, edit: Edit, pictures: ImageSet):
    """Embeds the prompts.

    Raises:
      ConfigError: prompts or masks do not fit.
    """
    config, model, mesh = study.config, study.model, study.mesh
    given = plan_lib.settings(config, "threats", name, OWN)
    self._study, self._name, self._options = study, name, given
    texts = subject_lib.texts_of(given.driving.get("prompt", config.prompt), pictures)
    negative = given.driving.get("negative_prompt", config.negative_prompt)
    self._cond, self._uncond = model.embeddings(texts), model.embeddings([negative])
    self._names = pictures.names
    self._ids = np.arange(len(pictures.images), dtype=np.int32)
    self._masks = None
    if edit.needs_masks:
      size = model.model.image_shape[:2]
      self._masks = _masks(given.driving.get("mask", "centre"), len(self._ids), size)
    # Replicated once: batches are split over all devices, so the parameters must be on each.
    self._params = model.params if mesh.size == 1 else mesh_lib.replicate(model.params, mesh)
    self._edit = jax.jit(_edited(edit))

  def make(self, cell: Cell, images: np.ndarray) -> np.ndarray:
    """Returns the edited pictures of a cell, uint8 (N, H, W, 3); edits them if needed.

    Every row and purifier uses the same random keys, so edits differ only by their pictures.
    """
    config = self._study.config
    target = cell.folder(self._study.workdir) / self.folder
    if not manifest.is_complete(target):
      key = stream(jax.random.key(config.seed), f"edit/{self._name}/{cell.seed}")

      def of_batch(images: jax.Array, ids: jax.Array, cond: Any, masks: Any) -> jax.Array:
        return self._edit(key, self._params, images, ids, cond, self._uncond, masks)

      edited = over_pictures(
        of_batch,
        images,
        self._ids,
        self._cond,
        self._masks,
        per_device_batch_size=config.performance.sample_batch_size,
        mesh=self._study.mesh,
      )
      manifest.write_folder(
        target, edited, self._names, record=_record(cell, self._options, config)
      )
    return manifest.read_folder(target)[0].images


def _edited(edit: Edit) -> Callable[..., jax.Array]:
  def function(
    key: jax.Array,
    params: Params,
    images: jax.Array,
    ids: jax.Array,
    cond: Any,
    uncond: Any,
    masks: Any,
  ) -> jax.Array:
    keys = example_keys(key, 0, ids)
    return quantise(edit.apply(keys, params, to_float(images), cond, uncond, masks))

  return function


class TrainCells:
  """Trains models on the pictures of any cell with one threat, and samples from them."""

  folder = "samples"

  def __init__(self, study: Study, name: str, threat: Threat, pictures: ImageSet):
    """Encodes the prompts.

    Raises:
      ConfigError: prompts do not fit, or the threat lacks a setting.
    """
    config, model = study.config, study.model
    given = plan_lib.settings(config, "threats", name, OWN)
    self._study, self._name, self._options = study, name, given
    self._threat, self._pictures = threat, pictures
    driving = given.driving
    self._cond: np.ndarray | None
    # The model that was sampled last, because it is measured next.
    self._latest: tuple[Cell, Params] | None = None
    prompt = driving.get("prompt", config.prompt)
    self._batch_size = int(driving.get("batch_size", config.global_batch_size))
    if self._batch_size < 1 or (threat.prior_weight and self._batch_size % 2):
      raise ConfigError(
        f"config.threats.{name}: a batch of {self._batch_size}; it must be at least 1, and even "
        "with class pictures, which are half of it"
      )
    self._encode = model.token_ids if threat.needs_token_ids else model.embeddings
    if "init_word" in driving:
      sentences = learned_sentences(given)
      # Every picture has every sentence; each training step draws one.
      ids = model.token_ids(sentences)
      assert ids is not None
      self._cond = np.broadcast_to(ids, (len(pictures.images), *ids.shape))
      samples, self.labels = [sentences[0]], None
    else:
      self._cond = self._encode(subject_lib.texts_of(prompt, pictures))
      samples, self.labels = _sample_prompts(
        driving.get("sample_prompt", prompt), pictures, config.num_samples
      )
    self._sample_cond = self._encode(samples)
    self._uncond = self._encode([driving.get("negative_prompt", config.negative_prompt)])
    # One prompt for each picture, for the model's loss on clean pictures.
    self.loss_cond = self._cond
    if "init_word" in driving and self._cond is not None:
      self.loss_cond = self._cond[:, 0]

  def make(self, cell: Cell, images: np.ndarray) -> np.ndarray:
    """Returns samples (S, H, W, 3) uint8 of the model trained on a cell; makes them if needed."""
    study = self._study
    target = cell.folder(study.workdir) / self.folder
    if not manifest.is_complete(target):
      sample.sample(
        self._threat.sample,
        self.params(cell, images),
        target,
        study.run(f"sample/{self._name}/{cell.seed}", target, f"sample {cell.name}"),
        num_samples=study.config.num_samples,
        asked=sample.Asked(
          self._sample_cond, self._uncond, _record(cell, self._options, study.config)
        ),
      )
    return manifest.read_folder(target)[0].images

  def params(self, cell: Cell, images: np.ndarray) -> Params:
    """Returns the parameters of the model trained on a cell's pictures; trains it if needed.

    Every row and purifier uses the same draws, so models differ only by their pictures.

    Raises:
      DivergedError, OutputError, Preempted: as `stages.train.train`.
    """
    if self._latest is not None and self._latest[0] == cell:
      return self._latest[1]
    study, threat = self._study, self._threat
    base = study.model.params if threat.needs_params else None
    size = self._batch_size
    prior = self._prior() if threat.prior_weight else None
    run = study.run(
      f"threat/{self._name}/{cell.seed}",
      self.scratch(cell),
      f"train {cell.name}",
      checkpoint_every=study.config.checkpoint.every_steps,
    )
    data = train.training_batches(images, self._cond, size, prior)
    theta = train.train(threat, data, base, run)
    if threat.save is not None:
      threat.save(cell.folder(study.workdir), theta)
    params = theta if base is None else threat.trainable.merge(theta, base)
    self._latest = cell, params
    return params

  def scratch(self, cell: Cell) -> Path:
    """Folder of the checkpoints of a cell's training."""
    workdir = self._study.workdir
    return workdir / "stages" / cell.folder(workdir).relative_to(workdir)

  def forget(self, cell: Cell) -> None:
    """Removes the checkpoints of a finished cell: they hold whole models and are large."""
    workdir_lib.discard_checkpoints(self.scratch(cell) / "checkpoints")

  def _prior(self) -> train.ClassPictures:
    """Class pictures, sampled from the model before training; the same for all cells."""
    driving, study = self._options.driving, self._study
    if "class_prompt" not in driving:
      raise ConfigError(
        f"config.threats.{self._name} preserves a prior: give its class_prompt, or prior_weight 0"
      )
    prompt = driving["class_prompt"]
    cond = self._encode([prompt])
    assert cond is not None
    folder = study.workdir / "class_pictures" / self._name
    made = sample.sample(
      self._threat.sample,
      study.model.params,
      folder,
      study.run(f"class/{self._name}", folder, f"class pictures of {self._name}"),
      num_samples=driving.get("num_class_images", 200),
      asked=sample.Asked(cond, self._uncond, {"method": "class pictures", "prompt": prompt}),
    )
    return train.ClassPictures(made, np.repeat(cond, len(made), axis=0), self._threat.prior_weight)


def _sample_prompts(
  prompt: str, pictures: ImageSet, count: int
) -> tuple[list[str], np.ndarray | None]:
  """Returns prompts that samples use in turn, and the class (count,) each sample is asked for."""
  if not subject_lib.asks_for_labels(prompt):
    return [prompt], None
  texts = subject_lib.texts_of(prompt, pictures)
  assert pictures.labels is not None
  different, first = np.unique(pictures.labels, return_index=True)
  return [texts[i] for i in first], different[np.arange(count) % len(different)]


def learned_sentences(given: plan_lib.Settings) -> list[str]:
  """Returns the sentences about the word that textual inversion learns."""
  return prompts.templates(
    given.driving.get("templates", "object"),
    given.options.get("token", "<concept>"),
    given.driving.get("num_vectors", 1),
  )


def _record(cell: Cell, given: plan_lib.Settings, config: Any) -> dict[str, Any]:
  return {
    "method": given.method,
    "row": cell.row,
    "purifier": cell.purifier,
    "threat": cell.threat,
    "seed": cell.seed,
    "options": {**given.options, **given.driving},
    "model": config.model.path,
  }


def build(study: Study, name: str, pictures: ImageSet) -> EditCells | TrainCells:
  """Builds the threat `name` of a config; it is compiled on first use.

  Raises:
    ConfigError: the threat is unknown, or an option is missing or unusable.
  """
  model = study.model
  given = plan_lib.settings(study.config, "threats", name, OWN)
  constructor = registry.constructor("udp_jax.threats", given.method)
  known = dict(model.for_options)
  if "init_word" in given.driving:
    if model.tokenizer is None:
      raise ConfigError(f"config.threats.{name} learns a word: the model has no tokenizer")
    known["token_ids"], known["init_from"] = prompts.learn_token(
      model.tokenizer,
      given.options.get("token", "<concept>"),
      given.driving["init_word"],
      given.driving.get("num_vectors", 1),
    )
  options = plan_lib.completed("threats", given.method, given.options, known)
  threat = registry.make(constructor, f"threat {name}", model.model, options=options)
  if isinstance(threat, Edit):
    return EditCells(study, name, threat, pictures)
  return TrainCells(study, name, threat, pictures)
