"""What a threat makes of a folder of pictures: edits of them, or samples of a model that saw them.

Everything that costs a compilation is made once for a threat and shared by all of its cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax import lookup, parallel, prompts, stages, study, training
from udp_jax.data import manifest, work_folder
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.matrix import plan as plan_lib
from udp_jax.matrix import subject as subject_lib
from udp_jax.matrix.plan import Cell
from udp_jax.matrix.subject import Subject
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.base import Params
from udp_jax.ops.image import quantise, to_float
from udp_jax.randomness import example_keys, stream
from udp_jax.threats import Edit, Threat
from udp_jax.threats.dreambooth import batches_with_prior

# Fields of config.threats.<name> that drive a threat and are none of its constructor's options.
OWN = (
  "prompt",  # of edits, and of training pictures; default config.prompt
  "negative_prompt",  # default config.negative_prompt
  "sample_prompt",  # of samples; default the training prompt
  "mask",  # of inpainting: which part is made anew, see `MASKS`
  "class_prompt",  # of DreamBooth's class pictures
  "num_class_images",
  "init_word",  # of textual inversion: where the new word starts
  "num_vectors",
  "templates",  # of textual inversion: "object" or "style"
)


def _masks(which: str, count: int, size: tuple[int, int]) -> np.ndarray:
  """Masks (N, H, W, 1) float32: 1 where a picture is made anew.

  Raises:
    ConfigError: an unknown mask.
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
  """Edits of the pictures of any cell, by one threat that trains nothing."""

  folder = "edits"

  def __init__(
    self, config: Any, name: str, edit: Edit, subject: Subject, pictures: ImageSet, mesh: Mesh
  ):
    """Embeds the prompts.

    Raises:
      ConfigError: prompts or masks that do not fit.
    """
    given = plan_lib.settings(config, "threats", name, OWN)
    self._config, self._name, self._mesh, self._options = config, name, mesh, given
    texts = subject_lib.texts_of(given.driving.get("prompt", config.prompt), pictures)
    negative = given.driving.get("negative_prompt", config.negative_prompt)
    self._cond, self._uncond = subject.embeddings(texts), subject.embeddings([negative])
    self._names = pictures.names
    self._ids = np.arange(len(pictures.images), dtype=np.int32)
    self._masks = None
    if edit.needs_masks:
      size = subject.model.image_shape[:2]
      self._masks = _masks(given.driving.get("mask", "centre"), len(self._ids), size)
    # Once on all devices: a batch is split over them, and its parameters must be where it is.
    self._params = subject.params if mesh.size == 1 else parallel.replicate(subject.params, mesh)
    self._edit = jax.jit(_edited(edit))

  def make(self, cell: Cell, images: np.ndarray, workdir: Path, *, progress: bool) -> np.ndarray:
    """The edited pictures of a cell, uint8 (N, H, W, 3), made now or before.

    The same keys for every row and purifier: edits differ by their pictures and nothing else.
    """
    del progress  # A batch or two.
    target = cell.folder(workdir) / self.folder
    if not manifest.is_complete(target):
      key = stream(jax.random.key(self._config.seed), f"edit/{self._name}/{cell.seed}")

      def of_batch(images: jax.Array, ids: jax.Array, cond: Any, masks: Any) -> jax.Array:
        return self._edit(key, self._params, images, ids, cond, self._uncond, masks)

      edited = over_pictures(
        of_batch,
        images,
        self._ids,
        self._cond,
        self._masks,
        per_device_batch_size=self._config.performance.sample_batch_size,
        mesh=self._mesh,
      )
      manifest.write_folder(
        target, edited, self._names, record=_record(cell, self._options, self._config)
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
  """Models trained on the pictures of any cell, and their samples, by one threat."""

  folder = "samples"

  def __init__(
    self, config: Any, name: str, threat: Threat, subject: Subject, pictures: ImageSet, mesh: Mesh
  ):
    """Encodes the prompts.

    Raises:
      ConfigError: prompts that do not fit, or a threat that lacks a setting.
    """
    given = plan_lib.settings(config, "threats", name, OWN)
    self._config, self._name, self._mesh, self._options = config, name, mesh, given
    self._threat, self._subject, self._pictures = threat, subject, pictures
    driving = given.driving
    self._cond: np.ndarray | None
    # Sampled from first, measured then.
    self._latest: tuple[Cell, Params] | None = None
    prompt = driving.get("prompt", config.prompt)
    self._encode = subject.token_ids if threat.needs_token_ids else subject.embeddings
    if "init_word" in driving:
      sentences = learned_sentences(given)
      # Every picture with every sentence: one is drawn at every step.
      ids = subject.token_ids(sentences)
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
    # One prompt a picture, for the model's loss on clean pictures.
    self.loss_cond = self._cond
    if "init_word" in driving and self._cond is not None:
      self.loss_cond = self._cond[:, 0]

  def make(self, cell: Cell, images: np.ndarray, workdir: Path, *, progress: bool) -> np.ndarray:
    """Samples (S, H, W, 3) uint8 of the model that a cell's pictures train, made now or before."""
    target = cell.folder(workdir) / self.folder
    if not manifest.is_complete(target):
      self._sample(self.params(cell, images, workdir, progress=progress), cell, target, progress)
    return manifest.read_folder(target)[0].images

  def params(self, cell: Cell, images: np.ndarray, workdir: Path, *, progress: bool) -> Params:
    """The parameters of the model that a cell's pictures train, made now or before.

    The same key for every row and purifier: models differ by their pictures and nothing else.

    Raises:
      DivergedError, OutputError, loop.Preempted: see `stages.train_stage`.
    """
    if self._latest is not None and self._latest[0] == cell:
      return self._latest[1]
    config, threat = self._config, self._threat
    base = self._subject.params if threat.needs_params else None
    theta = stages.train_stage(
      threat,
      self._batches(images, workdir, progress),
      key=stream(jax.random.key(config.seed), f"threat/{self._name}/{cell.seed}"),
      params=base,
      mesh=self._mesh,
      global_batch_size=config.global_batch_size,
      scratch_folder=self.scratch(cell, workdir),
      checkpoint_every=config.checkpoint.every_steps,
      steps_per_call=config.performance.steps_per_call,
      label=f"train {cell.name}",
      progress=progress,
    )
    if threat.save is not None:
      threat.save(cell.folder(workdir), theta)
    params = theta if base is None else threat.trainable.merge(theta, base)
    self._latest = cell, params
    return params

  def scratch(self, cell: Cell, workdir: Path) -> Path:
    """Where the checkpoints of a cell's training are."""
    return workdir / "stages" / cell.folder(workdir).relative_to(workdir)

  def forget(self, cell: Cell, workdir: Path) -> None:
    """Removes the checkpoints of a finished cell, whole models that nobody needs any more."""
    work_folder.discard_checkpoints(self.scratch(cell, workdir) / "checkpoints")

  def _sample(self, params: Params, cell: Cell, target: Path, progress: bool) -> None:
    config = self._config
    stages.sample_stage(
      self._threat,
      params,
      target,
      key=stream(jax.random.key(config.seed), f"sample/{self._name}/{cell.seed}"),
      num_samples=config.num_samples,
      per_device_batch_size=config.performance.sample_batch_size,
      record=_record(cell, self._options, config),
      label=f"sample {cell.name}",
      cond=self._sample_cond,
      uncond=self._uncond,
      progress=progress,
    )

  def _batches(self, images: np.ndarray, workdir: Path, progress: bool) -> training.Batch:
    size = self._config.global_batch_size
    if not self._threat.prior_weight:
      return training.make_batches(images, size, cond=self._cond)
    class_images, class_cond = self._class_pictures(workdir, progress)
    assert self._cond is not None
    return batches_with_prior(
      images,
      self._cond,
      class_images,
      class_cond,
      prior_weight=self._threat.prior_weight,
      global_batch_size=size,
    )

  def _class_pictures(self, workdir: Path, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the class, by the model before it is trained; the same for all cells."""
    driving, config = self._options.driving, self._config
    if "class_prompt" not in driving:
      raise ConfigError(
        f"config.threats.{self._name} preserves a prior: give its class_prompt, or prior_weight 0"
      )
    cond = self._encode([driving["class_prompt"]])
    assert cond is not None
    made = stages.sample_stage(
      self._threat,
      self._subject.params,
      workdir / "class_pictures" / self._name,
      key=stream(jax.random.key(config.seed), f"class/{self._name}"),
      num_samples=driving.get("num_class_images", 200),
      per_device_batch_size=config.performance.sample_batch_size,
      record={"method": "class pictures", "prompt": driving["class_prompt"]},
      label=f"class pictures of {self._name}",
      cond=cond,
      uncond=self._uncond,
      progress=progress,
    )
    return made, np.repeat(cond, len(made), axis=0)


def _sample_prompts(
  prompt: str, pictures: ImageSet, count: int
) -> tuple[list[str], np.ndarray | None]:
  """Prompts that samples take turns with, and the class (count,) that each sample was asked for."""
  if not subject_lib.asks_for_labels(prompt):
    return [prompt], None
  texts = subject_lib.texts_of(prompt, pictures)
  assert pictures.labels is not None
  different, first = np.unique(pictures.labels, return_index=True)
  return [texts[i] for i in first], different[np.arange(count) % len(different)]


def learned_sentences(given: plan_lib.Settings) -> list[str]:
  """The sentences about the word that textual inversion learns."""
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


def build(config: Any, name: str, subject: Subject, pictures: ImageSet) -> EditCells | TrainCells:
  """The threat `name` of a config, compiled when it is first used.

  Raises:
    ConfigError: an unknown threat, or a missing or unusable option.
  """
  given = plan_lib.settings(config, "threats", name, OWN)
  constructor = lookup.constructor("udp_jax.threats", given.method)
  known = dict(subject.for_options)
  if "init_word" in given.driving:
    if subject.pipeline is None or subject.pipeline.tokenizer is None:
      raise ConfigError(f"config.threats.{name} learns a word: the model has no tokenizer")
    known["token_ids"], known["init_from"] = prompts.learn_token(
      subject.pipeline.tokenizer,
      given.options.get("token", "<concept>"),
      given.driving["init_word"],
      given.driving.get("num_vectors", 1),
    )
  options = plan_lib.completed("threats", given.method, given.options, known)
  lookup.check_options(constructor, f"threat {name}", options)
  threat = constructor(subject.model, **options)
  mesh = study.make_mesh(config)
  if isinstance(threat, Edit):
    return EditCells(config, name, threat, subject, pictures, mesh)
  return TrainCells(config, name, threat, subject, pictures, mesh)
