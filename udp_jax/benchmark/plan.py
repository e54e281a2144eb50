"""The tasks of a config; each task is measured completely or not at all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from udp_jax.errors import ConfigError
from udp_jax.models.performance import DTYPES, PRECISIONS
from udp_jax.ops import conv

SECTIONS = ("races", "primitives", "cost", "scaling", "host", "compile")
# The same as `problem.PHASES`, repeated so that a plan imports no models.
PHASES = ("min", "max", "round", "joint")
# The work of a purification race.
IMPRESS = "impress"
# A step of AdvDM against a latent model: to PyTorch, a max step with frozen networks.
ADVDM = "advdm"
WORKS = (*PHASES, ADVDM, IMPRESS)
TORCH_VARIANTS = ("as_written", "channels_last", "compile")
# What a group of races may set besides its works, models, batches and dtypes:
#   precision        `performance.precision`, the same for both sides
#   remat            `performance.remat`
#   xla_flags        added to XLA_FLAGS of our process
#   phase            our program holds only this phase, "min" or "max"; "" for all
#   trains           part of the model that the surrogate trains, as the option of UDP
#   frozen           whether all networks are stored in the race's dtype on both sides
#   scan_steps       in place of `config.races.scan_steps`
#   peers            those of `config.peers.torch` that take part
#   prepare_s        seconds that it is likely to take to build and compile all contestants
#   race_s           the same for each of its races
OPTIONS = (
  *("precision", "remat", "xla_flags", "phase", "trains", "frozen", "scan_steps", "peers"),
  *("prepare_s", "race_s"),
)
# Fields of a race that decide what its workers hold.
_SEAT = (
  *("model", "batch", "dtype", "precision", "remat", "xla_flags", "phase", "trains"),
  *("frozen", "scan_steps"),
)

# (name, fields of `primitives.measure`): the shapes of the CIFAR-10 model's and the demo's layers,
# and of Stable Diffusion's long sequences.
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
  *(
    (
      f"attention_{length}x{heads}x{width}_{method}",
      {"primitive": "attention", "x_shape": (batch, length, heads, width), "method": method},
    )
    for batch, length, heads, width in ((4, 1024, 8, 8), (4, 1024, 1, 256), (1, 4096, 8, 40))
    for method in ("dot_product", "chunked", "by_head")
  ),
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
    asked: the work that its worker is asked to run.
    prepare: arguments for preparing its worker, without `works`.
  """

  framework: str
  variant: str
  asked: str
  prepare: dict[str, Any]


def tasks(config: Any, only: str = "") -> list[Task]:
  """Returns all tasks of a config whose key matches `only`, in order.

  Args:
    config: settings, as in `experiments.configs.benchmark`.
    only: regular expression, or several with commas between them; the name of a group in
      `config.races.order` selects that group alone.

  Raises:
    ConfigError: a name or number in the config cannot be used, or `only` selects nothing.
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
  # The comma of a repetition such as {1,2} separates nothing.
  words = re.split(r",(?![^{]*\})", only)
  patterns = [f"^{word}/" if word in config.races.order else word for word in words]
  try:
    chosen = [t for t in found if any(re.search(pattern, t.key) for pattern in patterns)]
  except re.error as error:
    raise ConfigError(f"--only={only} is no regular expression: {error}") from error
  if not chosen:
    keys = ", ".join(task.key for task in found)
    raise ConfigError(f"--only={only} selects nothing; tasks: {keys}")
  return chosen


def contestants(config: Any, task: Task) -> list[Contestant]:
  """Returns the contestants of a race, ours first."""
  given = task.spec
  work, batch, dtype = given["work"], given["batch"], given["dtype"]
  networks = _networks(config, given["model"])
  performance = {**config.performance.to_dict(), "dtype": dtype}
  performance |= {name: given[name] for name in ("precision", "remat") if name in given}
  if given.get("frozen"):
    performance |= {"frozen_dtype": dtype, "frozen_parts": ("unet", "vae", "text_encoder")}
  ours = {**networks, "performance": performance, "batch": batch}
  ours |= {name: given[name] for name in ("phase", "trains") if given.get(name)}
  theirs = {**networks, "batch": batch, "dtype": dtype}
  if work == IMPRESS:
    size = {"image_size": config.impress.image_size, "num_steps": config.impress.num_steps}
    ours, theirs = ({k: v for k, v in s.items() if k != "prompt_length"} for s in (ours, theirs))
    found = [Contestant("jax", "batch", work, {**ours, **size})]
    variants = [v for v in config.peers.torch if v != "compile"]
    specs = [{**theirs, **size, "variant": variant} for variant in variants]
    return found + [Contestant("torch", spec["variant"], work, spec) for spec in specs]
  scan_steps = given.get("scan_steps") or config.races.scan_steps
  if config.peers.several_steps:
    theirs["steps"] = max(scan_steps)
  if given.get("precision"):
    theirs["precision"] = given["precision"]
  # Narrower than the computation would be another computation.
  if "vae" in networks and performance.get("frozen_dtype") == dtype:
    theirs["frozen_dtype"] = dtype
  if work == ADVDM:
    found = [Contestant("jax", ADVDM, "max", {**ours, "method": ADVDM})]
    work = "max"
  elif work == "joint":
    steps = _steps(max(scan_steps))
    found = [Contestant("jax", "joint", "joint", {**ours, **steps, "joint": True})]
    # The separate steps that the joint step replaces run in the same race.
    found.append(Contestant("jax", "separate_steps", "round", {**ours, **steps}))
  else:
    found = [
      Contestant(
        "jax", "one_step" if count == 1 else f"scan_{count}", work, {**ours, **_steps(count)}
      )
      for count in scan_steps
    ]
  for variant in config.peers.torch:
    if variant not in given.get("peers", TORCH_VARIANTS):
      continue
    if variant == "compile" and not re.search(config.peers.compile_only, task.key):
      continue
    if variant == "as_written" and work == "joint":
      continue  # Public code has no joint step, so its only peer is the channels_last form.
    found.append(Contestant("torch", variant, work, {**theirs, "variant": variant}))
  return found


def _steps(count: int) -> dict[str, int]:
  return {"train_steps": count, "perturb_steps": count}


def _networks(config: Any, model: str) -> dict[str, Any]:
  """Returns the fields of `models.build` for a model of the config, and its prompt length."""
  if model in config.latent_models:
    return config.latent_models[model].to_dict()
  return {"unet": config.models[model].to_dict()}


def seat(task: Task) -> tuple[Any, ...]:
  """Returns what the workers of a race hold; races with the same seat share them."""
  fields = ((name, task.spec.get(name)) for name in _SEAT)
  return tuple(name if value is True else value for name, value in fields if value)


def _races(config: Any) -> list[Task]:
  if config.races.order:
    return [
      Task(f"{name}/{key}", "races", {**spec, "race": name})
      for name in config.races.order
      for key, spec in _of_group(config.races.groups[name])
    ]
  latent = set(config.latent_models)
  # Pixel models first; a ConfigDict has no order of its own.
  groups = sorted(config.races.groups.values(), key=lambda g: not latent.isdisjoint(g.models))
  found = dict(itertools.chain.from_iterable(map(_of_group, groups)))
  tasks = [Task(key, "races", spec) for key, spec in found.items()]
  # Tasks of one model, batch and dtype are adjacent, so that they share workers.
  seats = list(dict.fromkeys(map(seat, tasks)))
  return sorted(tasks, key=lambda task: seats.index(seat(task)))


def _of_group(group: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields key and spec of each race of a group."""
  options = {name: group[name] for name in OPTIONS if name in group}
  for model, dtype, batch, work in itertools.product(
    group.models, group.dtypes, group.batches, group.works
  ):
    spec = {"work": work, "model": model, "batch": batch, "dtype": dtype, **options}
    yield f"{work}/{model}/b{batch}/{dtype}", spec


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
  """Returns problems that vary one size at a time from a common base."""
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


def _rates() -> tuple[str, ...]:
  """Kinds of matrix products whose rate can be measured."""
  return (*DTYPES, *(f"float32/{precision}" for precision in PRECISIONS if precision))


def _check(config: Any) -> None:
  latent = set(config.latent_models)
  known: dict[str, tuple[Any, Any]] = {
    "primitives.dtypes": (config.primitives.dtypes, DTYPES),
    "peers.torch": (config.peers.torch, TORCH_VARIANTS),
    "host.models": (config.host.models, config.models),
    "compile_time.models": (config.compile_time.models, config.models),
    "scaling.model": ((config.scaling.model,) if config.scaling.devices else (), config.models),
    "cost.model": ((config.cost.model,) if config.cost.model else (), config.models),
    "races.order": (config.races.order, config.races.groups),
    "matmul_rates": (config.matmul_rates, _rates()),
  }
  batches: list[int] = []
  for name, group in config.races.groups.items():
    field = f"races.groups.{name}"
    known[f"{field}.works"] = group.works, WORKS
    known[f"{field}.dtypes"] = group.dtypes, DTYPES
    known[f"{field}.models"] = group.models, (*config.models, *config.latent_models)
    known[f"{field}.peers"] = group.get("peers", ()), TORCH_VARIANTS
    known[f"{field}.precision"] = (group.get("precision", ""),), tuple(PRECISIONS)
    known[f"{field}.phase"] = (group.get("phase", ""),), ("", "min", "max")
    batches += group.batches
  for field, (values, allowed) in known.items():
    for value in (values,) if isinstance(values, str) else values:
      if value not in allowed:
        raise ConfigError(f"config.{field}: unknown {value!r}; known: {', '.join(allowed)}")
  for name, group in config.races.groups.items():
    if group.get("phase") and tuple(group.works) != (group.phase,):
      raise ConfigError(
        f"config.races.groups.{name}: a program of phase {group.phase!r} can only be raced as that"
      )
    pixels = [model for model in group.models if model not in latent]
    if ADVDM in group.works and pixels:
      raise ConfigError(f"config.races.groups.{name}: {ADVDM!r} attacks no model of pixels")
    if IMPRESS not in group.works:
      continue
    if config.backend == "gpu":
      raise ConfigError(f"config.races.groups.{name}: work {IMPRESS!r} is raced on CPUs only")
    if pixels:
      raise ConfigError(
        f"config.races.groups.{name}: {pixels[0]!r} has no autoencoder to purify by"
      )
    if tuple(group.dtypes) != ("float32",):
      raise ConfigError(f"config.races.groups.{name}: work {IMPRESS!r} is raced in float32 only")
  for field, least in {"min_cycles": 1, "max_cycles": 1, "seconds": 0}.items():
    if not config.races[field] >= least:
      raise ConfigError(f"config.races.{field} is {config.races[field]}; at least {least}")
  if not config.races.scan_steps or not min(config.races.scan_steps) >= 1:
    raise ConfigError(f"config.races.scan_steps is {config.races.scan_steps}; each at least 1")
  for count in (*batches, *config.cost.batches, *config.scaling.devices):
    if not count >= 1:
      raise ConfigError(f"a batch or a number of devices of {count} in the config; at least 1")
  for count in config.scaling.devices:
    if config.scaling.batch % count:
      raise ConfigError(
        f"config.scaling.batch={config.scaling.batch} does not divide over {count} devices"
      )
