"""The programs of a run, lowered for devices that are not here: nothing is allocated or executed.

They are built by the code that a run uses: the config, `models.factory`, `study.build_protection`,
`Protection.update` and `placement`. A compiler's cost analysis counts the body of a loop once, so
besides the round as it runs there are its parts with one step each.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udp_jax import lookup, parallel, placement, study, training
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.protections.base import PERTURB, TRAIN, Protection
from udp_jax.training import Batch

# Pictures of the sources whose number is known without opening them.
_SOURCES = {"cifar10": 50_000, "cifar10-test": 10_000}
# Of CLIP, with its beginning and end.
_PROMPT_TOKENS = 77
_PARTS = {TRAIN: "min", PERTURB: "max"}


class Part(NamedTuple):
  """A kind of step that a round consists of.

  Attributes:
    name: "min", "max"; "joint" for one that is both; "step" where nothing is trained.
    phase: what `Protection.update` is told, to make this kind only; None where it has no parts.
    steps: of one round.
  """

  name: str
  phase: int | None
  steps: int


class Setting(NamedTuple):
  """What is compiled.

  Attributes:
    config: with everything decided that a run would decide by its backend.
    row: of the study.
    model: attacked, or class of the surrogate.
    params: abstract parameters of the attacked model, None where the method trains its own.
    mesh: of abstract devices.
    num_images: to be protected.
    global_batch_size: pictures of one batch.
    num_batches: batches of the data set.
  """

  config: Any
  row: str
  model: Any
  params: Any
  mesh: Mesh
  num_images: int
  global_batch_size: int
  num_batches: int


def num_images(config: Any) -> int:
  """Pictures that a run of `config` protects, without opening the source.

  Raises:
    ConfigError: the source's size is not known without opening it.
  """
  count = config.data.limit or _SOURCES.get(config.data.source.partition(":")[0])
  if not count or config.data.classes:
    raise ConfigError(f"how many pictures {config.data.source} holds is not known: --num_images=N")
  holdout = config.data.holdout
  return count - (round(holdout * count) if holdout < 1 else int(holdout))


def decide(config: Any, platform: str) -> Any:
  """A copy of `config` with what a run decides by its backend decided for `platform`."""
  config = copy.deepcopy(config)
  with config.unlocked():
    config.performance.backend = "gpu" if platform == "cuda" else platform
  return config


def setting(
  config: Any, row: str, mesh: Mesh, platform: str, images: int, global_batch_size: int
) -> Setting:
  """Builds the model and checks that everything fits together.

  Raises:
    ConfigError: as `factory.build` and `study.build_protection`; a batch that does not divide; a
      row without steps; streamed data.
  """
  if global_batch_size % mesh.size:
    raise ConfigError(
      f"a global batch of {global_batch_size} pictures does not divide over {mesh.size} devices; "
      "give --per_device_batch_size=N"
    )
  if images < global_batch_size:
    raise ConfigError(
      f"{images} pictures are less than one global batch of {global_batch_size}: give a smaller "
      "--per_device_batch_size or fewer chips"
    )
  if config.performance.get("shard_batches"):
    raise ConfigError(
      "data that are streamed: set --config.performance.shard_batches=0, and --num_images to the "
      "pictures of one shard"
    )
  config = decide(config, platform)
  # Only shapes matter, so a method that attacks a trained model needs none here.
  model, params = factory.abstract_model(config.model, config.performance)
  model = placement.split_weights(model, mesh)
  found = Setting(config, row, model, params, mesh, images, global_batch_size, 0)
  has_frozen_parts = model.shape != model.image_shape
  if not (has_frozen_parts or study.build_protection(config, row, model, params).needs_params):
    found = found._replace(params=None)
  found = found._replace(num_batches=_data(found).ids.shape[0])
  if not parts(found):
    raise ConfigError(f"{row} takes no steps: there is nothing to compile")
  return found


def parts(settings: Setting) -> list[Part]:
  """The kinds of step of one round, in order; none for a row that draws its delta once."""
  protection = _protection(settings, one_step=False)
  perturb_steps = settings.num_batches * protection.perturb_steps
  if protection.phases:
    steps = {TRAIN: _option(settings, "train_steps"), PERTURB: perturb_steps}
    return [Part(_PARTS[phase], phase, steps[phase]) for phase in protection.phases]
  if protection.needs_reference:
    return []
  if hasattr(_arguments(settings, protection)[1], "surrogate"):
    return [Part("joint", None, _option(settings, "train_steps"))]
  return [Part("step", None, perturb_steps)] if protection.needs_params else []


def lower_round(settings: Setting) -> Any:
  """The round as a run dispatches it, lowered: which phase it is arrives with the arguments."""
  protection = _protection(settings, one_step=False)
  arguments = _arguments(settings, protection)
  whole = NamedSharding(settings.mesh, PartitionSpec())
  phase = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
  return _jit(settings, protection.update, arguments).lower(*arguments, phase)


def lower_part(settings: Setting, part: Part) -> Any:
  """A round with one step of one kind, lowered: its costs are those of the step.

  The loop over batches stays, over all of the data; a cost analysis counts its body once.
  """
  protection = _protection(settings, one_step=True)
  arguments = _arguments(settings, protection)
  phase = None if part.phase is None else np.int32(part.phase)

  def update(key, state, data, params):
    return protection.update(key, state, data, params, phase)

  return _jit(settings, update, arguments).lower(*arguments)


def _jit(settings: Setting, update: Any, arguments: tuple) -> Any:
  # The state comes back placed as it went in, so that the next round takes it as it is.
  shardings = placement.state_shardings(arguments[1], arguments[2], settings.mesh)
  return jax.jit(update, donate_argnums=1, out_shardings=(shardings, None))


def _option(settings: Setting, name: str) -> Any:
  method, _, _, options = study.row_settings(settings.config, settings.row)
  function = lookup.constructor("udp_jax.protections", method)
  return options.get(name, inspect.signature(function).parameters[name].default)


def _protection(settings: Setting, *, one_step: bool) -> Protection:
  config, row = settings.config, settings.row
  if one_step:
    method = study.row_settings(config, row)[0]
    known = inspect.signature(lookup.constructor("udp_jax.protections", method)).parameters
    # A restart and a warm-up are branches, and belong to no step.
    single = {"train_steps": 1, "perturb_steps": 1, "restart_every": 0, "warmup_rounds": 0}
    config = copy.deepcopy(config)
    with config.unlocked():
      options = config.protections.get(row) or {}
      config.protections[row] = {**options, **{k: v for k, v in single.items() if k in known}}
  return study.build_protection(config, row, settings.model, settings.params)


def _data(settings: Setting) -> Batch:
  """Abstract data, arranged by what arranges the real ones: a stand-in of one pixel a picture."""
  stand_in = np.zeros((settings.num_images, 1, 1, 1), np.uint8)
  batches = training.make_batches(stand_in, settings.global_batch_size)
  shape = batches.ids.shape
  pictures: Any = jax.ShapeDtypeStruct((*shape, *settings.model.image_shape), np.uint8)
  batches = batches._replace(images=pictures, cond=_prompts(settings, shape))
  return _placed(batches, placement.batch_shardings(batches, settings.mesh))


def _prompts(settings: Setting, shape: tuple[int, ...]) -> Any:
  """Abstract embeddings of a prompt for each picture; None for models without text."""
  if settings.model.embed is None:
    return None
  ids = jax.ShapeDtypeStruct((1, _PROMPT_TOKENS), np.int32)
  params = settings.params or jax.eval_shape(settings.model.init, jax.random.key(0))
  embedded = jax.eval_shape(settings.model.embed, params, ids)
  return jax.ShapeDtypeStruct((*shape, *embedded.shape[1:]), embedded.dtype)


def _placed(tree: Any, shardings: Any) -> Any:
  def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, tree, shardings)


def _arguments(settings: Setting, protection: Protection) -> tuple[Any, Any, Batch, Any]:
  """Abstract (key, state, data, params), placed as in a run."""
  mesh, data = settings.mesh, _data(settings)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = settings.params
  state = jax.eval_shape(protection.init, key, data, params)
  state = _placed(state, placement.state_shardings(state, data, mesh))
  if params is not None:
    params = _placed(params, placement.param_shardings(params, mesh))
  return _placed(key, placement.replicated(key, mesh)), state, data, params


def make_mesh(devices: list[Any], config: Any) -> Mesh:
  """The mesh of a run on these devices."""
  return parallel.make_mesh(devices, fsdp=config.performance.get("fsdp", 1) or 1)
