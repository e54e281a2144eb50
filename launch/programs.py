"""The programs of a run, lowered for absent devices: nothing is allocated or executed.

They are built by the code of a real run: the config, `models.factory`, `build.build_protection`,
`Protection.update` and `sharding`. A compiler's cost analysis counts the body of a loop once, so
besides the real round there are its parts with one step each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch import cudnn
from launch.chips import Target
from udp_jax import registry
from udp_jax.data import batches as batches_lib
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models import factory, sharded
from udp_jax.models.context import Model
from udp_jax.ops.attention import Gpu
from udp_jax.protections.base import PERTURB, TRAIN, Protection
from udp_jax.runtime import mesh, sharding
from udp_jax.stages import protect
from udp_jax.stages.compiled_round import CompiledRound, placed
from udp_jax.stages.records import Row
from udp_jax.studies import build, rows, settings

# Number of pictures in sources that need not be opened to know it.
_SOURCES = {"cifar10": 50_000, "cifar10-test": 10_000}
# Tokens of a CLIP prompt, including start and end.
_PROMPT_TOKENS = 77
_PARTS = {TRAIN: "min", PERTURB: "max"}


class Part(NamedTuple):
  """One kind of step in a round.

  Attributes:
    name: "min", "max"; "joint" for both at once; "step" if nothing is trained.
    phase: phase in which `Protection.update` runs only this kind; None if it has no parts.
    steps: number of steps of this kind in one round.
    repeats: number of steps in the program of `lower_part`. Steps that perturb take one for each
      batch of the data. Steps that train take one; all of a round for GPUs, whose programs bring
      the weights into another order before the first step and back after the last.
  """

  name: str
  phase: int | None
  steps: int
  repeats: int


class Setting(NamedTuple):
  """The round to compile.

  Attributes:
    config: settings, including those that a run would take from its backend.
    row: method and options.
    model: the attacked model, or the architecture of the surrogate.
    params: abstract parameters of the attacked model; None if the method trains its own.
    mesh: abstract devices.
    num_images: number of pictures to protect.
    global_batch_size: pictures in one batch.
    num_batches: batches in the data set.
    gpu: the GPU that decides about attention; None for other targets.
  """

  config: Any
  row: Row
  model: Any
  params: Any
  mesh: Mesh
  num_images: int
  global_batch_size: int
  num_batches: int
  gpu: Gpu | None = None


def num_images(config: Any) -> int:
  """Returns the number of pictures that a run of `config` protects, without opening the source.

  Raises:
    ConfigError: the source's size is not known without opening it.
  """
  count = config.data.limit or _SOURCES.get(config.data.source.partition(":")[0])
  if not count or config.data.classes:
    raise ConfigError(f"how many pictures {config.data.source} holds is not known: --num_images=N")
  holdout = config.data.holdout
  return count - (round(holdout * count) if holdout < 1 else int(holdout))


def decide(config: Any, platform: str) -> Any:
  """Returns a copy of `config` with `platform`'s values where a run uses its backend's defaults."""
  backend = "gpu" if platform == "cuda" else platform
  return settings.frozen(config, {"performance.backend": backend})


def setting(
  config: Any, row: str, mesh: Mesh, target: Target, images: int, global_batch_size: int
) -> Setting:
  """Builds the model and checks that everything fits together.

  Raises:
    ConfigError: `factory.build` or `build.build_protection` raises it, the batch does not divide
      over the devices, the row has no steps, or its data are streamed.
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
  config = decide(config, target.platform)
  # Only shapes matter, so a method that attacks a trained model needs no trained weights here.
  model, params = factory.abstract_model(config.model, config.performance)
  model = sharded.split_weights(model, mesh)
  asked = rows.settings(config, row)
  found = Setting(config, asked, model, params, mesh, images, global_batch_size, 0, target.gpu)
  has_frozen_parts = model.shape != model.image_shape
  # Checked as in a run: a row that imitates another row needs that one too.
  built = build.build_protection(config, row, Model(model, params))
  if not (has_frozen_parts or built.needs_params):
    found = found._replace(params=None)
  found = found._replace(num_batches=_data(found).ids.shape[0])
  if not parts(found):
    raise ConfigError(f"{row} takes no steps: there is nothing to compile")
  return found


def parts(found: Setting) -> list[Part]:
  """Returns the kinds of steps in a round, in order; none for a row that draws its delta once."""
  protection = _protection(found, found.row)
  perturb_steps = found.num_batches * protection.perturb_steps
  if protection.phases:
    steps = {TRAIN: protection.trains, PERTURB: perturb_steps}
    repeats = {TRAIN: protection.trains if found.gpu else 1, PERTURB: found.num_batches}
    return [Part(_PARTS[phase], phase, steps[phase], repeats[phase]) for phase in protection.phases]
  if protection.needs_reference:
    return []
  if hasattr(_arguments(found, protection)[0].abstract, "surrogate"):
    return [Part("joint", None, protection.trains, 1)]
  if not protection.needs_params:
    return []
  return [Part("step", None, perturb_steps, found.num_batches)]


def lower_round(found: Setting) -> Any:
  """Lowers the round as a run dispatches it; its phase is an argument."""
  protection = _protection(found, found.row)
  compiled, arguments = _arguments(found, protection)
  whole = NamedSharding(found.mesh, PartitionSpec())
  phase = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
  with cudnn.pretend(found.gpu):
    return compiled.lower(*arguments, phase)


def lower_part(found: Setting, part: Part) -> Any:
  """Lowers a round with `part.repeats` steps of one kind.

  The compilers' own cost analysis counts the body of a loop once: its costs are those of one step.
  """
  known = registry.fields(registry.constructor("udp_jax.protections", found.row.method))
  # Restarts and warm-up are branches that belong to no step.
  single = {"train_steps": 1, "perturb_steps": 1, "restart_every": 0, "warmup_rounds": 0}
  if part.phase == TRAIN and part.repeats > 1:
    del single["train_steps"]  # As many as a round takes.
  row = found.row.with_options(**{name: n for name, n in single.items() if name in known})
  protection = _protection(found, row)
  phase = None if part.phase is None else np.int32(part.phase)

  def update(key, state, data, params):
    return protection.update(key, state, data, params, phase)

  compiled, arguments = _arguments(found, protection, update=update)
  with cudnn.pretend(found.gpu):
    return compiled.jitted.lower(*arguments)


def _protection(found: Setting, row: Row) -> Protection:
  return protect.build_protection(row, found.model, trained=found.params is not None)


def _data(found: Setting) -> Batch:
  """Returns abstract data, arranged like a run's from stand-ins of one pixel per picture."""
  stand_in = np.zeros((found.num_images, 1, 1, 1), np.uint8)
  batches = batches_lib.make_batches(stand_in, found.global_batch_size)
  shape = batches.ids.shape
  pictures: Any = jax.ShapeDtypeStruct((*shape, *found.model.image_shape), np.uint8)
  batches = batches._replace(images=pictures, cond=_prompts(found, shape))
  return placed(batches, sharding.batch_shardings(batches, found.mesh))


def _prompts(found: Setting, shape: tuple[int, ...]) -> Any:
  """Returns abstract embeddings of one prompt per picture; None for models without text."""
  if found.model.embed is None:
    return None
  ids = jax.ShapeDtypeStruct((1, _PROMPT_TOKENS), np.int32)
  params = found.params or jax.eval_shape(found.model.init, jax.random.key(0))
  embedded = jax.eval_shape(found.model.embed, params, ids)
  return jax.ShapeDtypeStruct((*shape, *embedded.shape[1:]), embedded.dtype)


def _arguments(
  found: Setting, protection: Protection, *, update: Any = None
) -> tuple[CompiledRound, tuple[Any, Any, Batch, Any]]:
  """Returns the round and its abstract (key, state, data, params), placed as in a run."""
  mesh, data, params = found.mesh, _data(found), found.params
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = CompiledRound.of(protection, key, data, params, mesh, update=update)
  if params is not None:
    params = placed(params, sharding.param_shardings(params, mesh))
  return compiled, (placed(key, sharding.replicated(key, mesh)), compiled.placed, data, params)


def make_mesh(devices: list[Any], config: Any) -> Mesh:
  """Makes the mesh of a run on these devices."""
  return mesh.make_mesh(devices, fsdp=config.performance.get("fsdp", 1) or 1)
