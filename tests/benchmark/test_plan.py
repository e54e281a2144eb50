"""What configs ask for, and the mistakes in them."""

from __future__ import annotations

import pytest

from experiments import _cli
from udp_jax.benchmark import plan
from udp_jax.errors import ConfigError


def _config(name: str = "default", **changes):
  config = _cli.get_config("benchmark", name)
  for field, value in changes.items():
    group, _, leaf = field.partition("__")
    config[group][leaf] = value
  return config


def test_default_covers_every_work_model_batch_and_dtype() -> None:
  tasks = plan.tasks(_config())
  assert len({task.key for task in tasks}) == len(tasks)
  races = [task.key for task in tasks if task.section == "races"]
  expected = [
    f"{work}/{model}/b{batch}/{dtype}"
    for model in ("ddpm_cifar10", "demo")
    for dtype in ("float32", "bfloat16")
    for batch in (16, 8)
    for work in ("round", "min", "max", "joint")
  ]
  assert races == expected
  assert {task.section for task in tasks} == set(plan.SECTIONS)
  primitives = [task.key for task in tasks if task.section == "primitives"]
  for method in ("xla", "direct", "winograd"):
    for shape in ("3x3_32x32x128", "3x3_16x16x32", "3x3_stride2_16x16x256", "1x1_16x16x512"):
      assert f"primitives/conv_{shape}_{method}/float32" in primitives


def test_only_selects_by_key() -> None:
  config = _config()
  chosen = plan.tasks(config, "^(round|max)/demo/b8/")
  assert [task.key for task in chosen] == [
    "round/demo/b8/float32",
    "max/demo/b8/float32",
    "round/demo/b8/bfloat16",
    "max/demo/b8/bfloat16",
  ]
  with pytest.raises(
    ConfigError, match="--only=nothing selects nothing; tasks: round/ddpm_cifar10"
  ):
    plan.tasks(config, "nothing")
  with pytest.raises(ConfigError, match="no regular expression"):
    plan.tasks(config, "(")


def _names(key: str, **changes) -> list[str]:
  config = _config(**changes)
  (task,) = [task for task in plan.tasks(config) if task.key == key]
  return [f"{c.framework} {c.variant}" for c in plan.contestants(config, task)]


def test_contestants() -> None:
  peers = ["torch as_written", "torch channels_last", "torch compile"]
  assert _names("max/demo/b16/float32") == ["jax one_step", *peers]
  # torch.compile is left out where it was not asked for.
  assert _names("min/demo/b8/bfloat16") == ["jax one_step", *peers[:2]]
  assert _names("round/demo/b16/float32") == ["jax one_step", "jax scan_3", *peers]
  assert _names("joint/demo/b16/float32") == ["jax joint", "jax separate_steps", *peers[1:]]
  assert _names("max/demo/b16/float32", peers__torch=()) == ["jax one_step"]


def test_both_sides_have_the_same_network_and_dropout() -> None:
  config = _config()
  task = plan.tasks(config, "round/ddpm_cifar10/b16/bfloat16")[0]
  ours, _, theirs, *_ = (c.prepare for c in plan.contestants(config, task))
  assert ours["unet"] == theirs["unet"] and theirs["unet"]["dropout"] == 0.1
  assert ours["batch"] == theirs["batch"] == 16
  assert ours["performance"]["dtype"] == theirs["dtype"] == "bfloat16"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"races__works": ("maxi",)}, "config.races.works: unknown 'maxi'; known: min, max, round"),
    ({"races__dtypes": ("float16",)}, "config.races.dtypes: unknown 'float16'"),
    ({"peers__torch": ("jit",)}, "config.peers.torch: unknown 'jit'"),
    ({"races__min_cycles": 0}, "min_cycles is 0"),
    ({"races__batches": (0,)}, "at least 1"),
    ({"scaling__batch": 12}, "does not divide over 8 devices"),
    ({"cost__model": "huge"}, "config.cost.model: unknown 'huge'"),
  ],
)
def test_mistakes(changes: dict, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    plan.tasks(_config(**changes))


@pytest.mark.parametrize("name", _cli.config_names("benchmark"))
@pytest.mark.parametrize("variant", ["", ":smoke"])
def test_every_config_is_a_plan(name: str, variant: str) -> None:
  config = _cli.get_config("benchmark", name + variant)
  tasks = plan.tasks(config)
  races = [task for task in tasks if task.section == "races"]
  assert races and all(plan.contestants(config, task) for task in races)
  if variant:
    # Needs no peers and says what its numbers are worth.
    assert not config.peers.torch and "smoke" in config.notice
    assert list(config.models) == ["tiny"]
  else:
    assert set(config.peers.torch) >= {"as_written", "channels_last"}
