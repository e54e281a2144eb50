"""What a config asks to be measured: a list of tasks, each done whole or not at all."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from udp_jax.benchmark.jax_worker import PHASES
from udp_jax.errors import ConfigError
from udp_jax.models.performance import DTYPES
from udp_jax.ops import conv

SECTIONS = ("races", "primitives", "cost", "scaling", "host", "compile")
TORCH_VARIANTS = ("as_written", "channels_last", "compile")

# (name, fields of `primitives.measure`): the shapes of the CIFAR-10 model's and the demo's layers.
_CONVOLUTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
  ("3x3_32x32x128", {"x_shape": (16, 32, 32, 128), "kernel": (3, 3, 128, 128)}),
  ("3x3_16x16x32", {"x_shape": (64, 16, 16, 32), "kernel": (3, 3, 32, 32)}),
  (
    "3x3_stride2_16x16x256",
    {"x_shape": (16, 16, 16, 256), "kernel": (3, 3, 256, 256), "stride": 2},
  ),
  ("1x1_16x16x512", {"x_shape": (16, 16, 16, 512), "kernel": (1, 1, 512, 256)}),
)
_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
  ("group_norm_32x32x128", {"primitive": "group_norm", "x_shape": (16, 32, 32, 128)}),
  ("attention_256x256", {"primitive": "attention", "x_shape": (16, 256, 1, 256)}),
)


class Task(NamedTuple):
  """One thing to measure.

  Attributes:
    key: its name in bench.json and for --only, e.g. "round/ddpm_cifar10/b16/float32".
    section: one of `SECTIONS`.
    spec: fields of its rows.
  """

  key: str
  section: str
  spec: dict[str, Any]


class Contestant(NamedTuple):
  """One variant of one framework in a race.

  Attributes:
    framework: "jax" or "torch".
    variant: its name in the table.
    asked: work that the worker is asked for.
    prepare: how its worker is prepared, without `works`.
  """

  framework: str
  variant: str
  asked: str
  prepare: dict[str, Any]


def tasks(config: Any, only: str = "") -> list[Task]:
  """All tasks of a config whose key contains the regular expression `only`, in order.

  Raises:
    ConfigError: a name or number in the config that means nothing, or `only` selects nothing.
  """
  _check(config)
  found = [*_races(config), *_primitives(config), *_costs(config)]
  for count in config.scaling.devices:
    spec = {"devices": count, "model": config.scaling.model, "batch": config.scaling.batch}
    found.append(Task(f"scaling/{count}", "scaling", spec))
  for model in config.host.models:
    spec = {"model": model, "batch": config.host.batch, "num_rounds": config.host.num_rounds}
    spec["in_one_dispatch"] = model in config.host.in_one_dispatch
    found.append(Task(f"host/{model}", "host", spec))
  for model in config.compile_time.models:
    spec = {"model": model, "batch": config.compile_time.batch}
    found.append(Task(f"compile/{model}", "compile", spec))
  try:
    chosen = [task for task in found if re.search(only, task.key)]
  except re.error as error:
    raise ConfigError(f"--only={only} is no regular expression: {error}") from error
  if not chosen:
    keys = ", ".join(task.key for task in found)
    raise ConfigError(f"--only={only} selects nothing; tasks: {keys}")
  return chosen


def contestants(config: Any, task: Task) -> list[Contestant]:
  """Who takes part in a race: ours first."""
  work, batch = task.spec["work"], task.spec["batch"]
  unet = config.models[task.spec["model"]].to_dict()
  performance = {**config.performance.to_dict(), "dtype": task.spec["dtype"]}
  ours = {"unet": unet, "performance": performance, "batch": batch}
  found = []
  if work == "joint":
    found.append(Contestant("jax", "joint", "joint", {**ours, "joint": True}))
    # What the joint step replaces, in the same race.
    found.append(Contestant("jax", "separate_steps", "round", ours))
  else:
    found.append(Contestant("jax", "one_step", work, ours))
  if work == "round" and config.races.scan_steps > 1:
    steps = config.races.scan_steps
    spec = {**ours, "train_steps": steps, "perturb_steps": steps}
    found.append(Contestant("jax", f"scan_{steps}", work, spec))
  for variant in config.peers.torch:
    if variant == "compile" and batch not in config.peers.compile_batches:
      continue
    if variant == "as_written" and work == "joint":
      continue  # Nobody writes it: the form with channels_last is its only one.
    spec = {"unet": unet, "batch": batch, "dtype": task.spec["dtype"], "variant": variant}
    found.append(Contestant("torch", variant, work, spec))
  return found


def _races(config: Any) -> list[Task]:
  found = []
  for model in config.models:
    # The works of one model, batch and dtype follow each other: they share workers.
    for dtype in config.races.dtypes:
      for batch in config.races.batches:
        for work in config.races.works:
          spec = {"work": work, "model": model, "batch": batch, "dtype": dtype}
          found.append(Task(f"{work}/{model}/b{batch}/{dtype}", "races", spec))
  return found


def _primitives(config: Any) -> list[Task]:
  found = []
  cases = [
    (f"conv_{name}_{method}", {"primitive": "conv", "method": method, **spec})
    for name, spec in _CONVOLUTIONS
    for method in conv.METHODS
  ]
  for name, spec in (*cases, *_OTHERS):
    if not re.search(config.primitives.select, name):
      continue
    for dtype in config.primitives.dtypes:
      fields = {**spec, "dtype": dtype, "seconds": config.primitives.seconds}
      if config.primitives.batch or spec.get("method") == "xla":
        # In a scan, XLA's own gradients take seconds at the full batch.
        fields["x_shape"] = (config.primitives.batch or 2, *spec["x_shape"][1:])
      found.append(Task(f"primitives/{name}/{dtype}", "primitives", {"name": name, **fields}))
  return found


def _costs(config: Any) -> list[Task]:
  """One axis of the work at a time, from a common base."""
  c = config.cost
  if not c.model:
    return []
  size = config.models[c.model].sample_size
  base = {"model": c.model, "batch": c.batch, "num_batches": 1, "steps": 1, "resolution": size}
  axes = {"batch": c.batches, "resolution": c.resolutions, "steps": c.steps}
  axes["num_batches"] = c.num_batches
  return [
    Task(f"cost/{axis}/{value}", "cost", {"axis": axis, **base, axis: value})
    for axis, values in axes.items()
    for value in values
  ]


def _check(config: Any) -> None:
  known: dict[str, tuple[Any, Any]] = {
    "races.works": (config.races.works, PHASES),
    "races.dtypes": (config.races.dtypes, DTYPES),
    "primitives.dtypes": (config.primitives.dtypes, DTYPES),
    "peers.torch": (config.peers.torch, TORCH_VARIANTS),
    "host.models": (config.host.models, config.models),
    "compile_time.models": (config.compile_time.models, config.models),
    "scaling.model": ((config.scaling.model,) if config.scaling.devices else (), config.models),
    "cost.model": ((config.cost.model,) if config.cost.model else (), config.models),
  }
  for field, (values, allowed) in known.items():
    for value in (values,) if isinstance(values, str) else values:
      if value not in allowed:
        raise ConfigError(f"config.{field}: unknown {value!r}; known: {', '.join(allowed)}")
  for field, least in {"min_cycles": 1, "max_cycles": 1, "scan_steps": 1, "seconds": 0}.items():
    if not config.races[field] >= least:
      raise ConfigError(f"config.races.{field} is {config.races[field]}; at least {least}")
  for count in (*config.races.batches, *config.cost.batches, *config.scaling.devices):
    if not count >= 1:
      raise ConfigError(f"a batch or a number of devices of {count} in the config; at least 1")
  for count in config.scaling.devices:
    if config.scaling.batch % count:
      raise ConfigError(
        f"config.scaling.batch={config.scaling.batch} does not divide over {count} devices"
      )
