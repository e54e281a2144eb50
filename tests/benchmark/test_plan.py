"""What configs ask for, and the mistakes in them."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import _cli
from experiments.configs import benchmark
from udp_jax.benchmark import plan, runner
from udp_jax.errors import ConfigError


def _config(name: str = "default", **changes):
  config = _cli.get_config("benchmark", name)
  for field, value in changes.items():
    group, _, leaf = field.partition("__")
    config[group][leaf] = value
  return config


def _races(name: str) -> list[str]:
  tasks = plan.tasks(_config(name))
  assert len({task.key for task in tasks}) == len(tasks)
  assert {task.section for task in tasks} <= set(plan.SECTIONS)
  return [task.key for task in tasks if task.section == "races"]


def test_full_covers_every_work_model_batch_and_dtype() -> None:
  expected = [
    f"{work}/{model}/b{batch}/{dtype}"
    for model in ("ddpm_cifar10", "demo")
    for dtype in ("float32", "bfloat16")
    for batch in (16, 8)
    for work in ("round", "min", "max", "joint")
  ]
  latent = [
    f"{race}/{dtype}"
    for race in ("advdm/sd15/b1", "max/sd_small/b4")
    for dtype in ("float32", "bfloat16")
  ]
  assert _races("full") == [*expected, *latent, "impress/sd_small/b8/float32"]
  primitives = [task.key for task in plan.tasks(_config("full")) if task.section == "primitives"]
  for method in ("xla", "direct", "winograd"):
    for shape in ("3x3_32x32x128", "3x3_16x16x32", "3x3_stride2_16x16x256", "1x1_16x16x512"):
      assert f"primitives/conv_{shape}_{method}/float32" in primitives


def test_default_is_a_part_of_full() -> None:
  default = _races("default")
  assert set(default) < set(_races("full"))
  # What the goals are about.
  for work in ("round", "min", "max", "joint"):
    assert f"{work}/ddpm_cifar10/b16/float32" in default
  for rest in ("ddpm_cifar10/b8/float32", "ddpm_cifar10/b16/bfloat16", "demo/b8/float32"):
    assert f"round/{rest}" in default
  assert "max/sd_small/b4/float32" in default and "impress/sd_small/b8/float32" in default
  assert {task.section for task in plan.tasks(_config())} == set(plan.SECTIONS)


def test_a_race_at_full_size_stores_every_network_in_its_dtype() -> None:
  tasks = [task for task in plan.tasks(_config()) if task.spec.get("work") == plan.ADVDM]
  assert [task.spec["dtype"] for task in tasks] == ["float32", "bfloat16"]
  for task in tasks:
    ours, theirs = plan.contestants(_config(), task)
    assert ours.asked == theirs.asked == "max" and ours.prepare["method"] == "advdm"
    assert theirs.variant == "channels_last"
    settings, dtype = ours.prepare["performance"], task.spec["dtype"]
    assert settings["dtype"] == settings["frozen_dtype"] == theirs.prepare["frozen_dtype"] == dtype
    assert set(settings["frozen_parts"]) == {"unet", "vae", "text_encoder"}


def test_races_that_share_workers_follow_each_other() -> None:
  config = _config("full")
  one = ("float32",)
  config.races.groups = {
    "a": benchmark.group(("round", "min"), ("demo",), (8, 16), one),
    "b": benchmark.group(("max", "round"), ("demo",), (8,), one),
  }
  races = [task.key for task in plan.tasks(config) if task.section == "races"]
  eight = [f"{work}/demo/b8/float32" for work in ("round", "min", "max")]
  assert races == [*eight, "round/demo/b16/float32", "min/demo/b16/float32"]


def test_only_selects_by_key() -> None:
  config = _config("full")
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


def _gpu(**changes):
  return _config("gpu", **changes)


def test_a_gpu_measures_in_the_order_of_worth() -> None:
  config = _gpu()
  tasks = plan.tasks(config)
  assert list(dict.fromkeys(task.spec["race"] for task in tasks)) == list(config.races.order)
  # Everything in `races.groups` is measured.
  assert set(config.races.order) == set(config.races.groups)
  first = [task.key for task in tasks[:8]]
  cifar = [f"{work}/ddpm_cifar10/b128/bfloat16" for work in ("round", "max", "min")]
  alone, raced = ([f"{name}/{key}" for key in cifar] for name in ("cifar_ours", "cifar"))
  latent = "max/sd15/b8/bfloat16"
  assert first == [*alone, *raced, f"sd_ours/{latent}", f"sd/{latent}"]
  assert {task.section for task in tasks} == {"races"}
  # Ours alone and against peers, by the same worker.
  assert len({plan.seat(task) for task in tasks[:6]}) == 1
  for ours, against in ((0, 3), (6, 7)):
    assert plan.seat(tasks[ours]) == plan.seat(tasks[against])
    (alone_there,) = plan.contestants(config, tasks[ours])
    assert alone_there == plan.contestants(config, tasks[against])[0]
  assert len({(task.spec["race"], *plan.seat(task)) for task in tasks}) == len(config.races.order)


def test_groups_may_set_more_and_both_sides_learn_of_it() -> None:
  config = _gpu()
  by_race = {task.spec["race"]: task for task in plan.tasks(config)}
  ours, theirs = plan.contestants(config, by_race["tf32"])
  assert ours.prepare["performance"]["precision"] == theirs.prepare["precision"] == "tf32"
  assert ours.prepare["train_steps"] == theirs.prepare["steps"] == 12
  ours, theirs = plan.contestants(config, by_race["sd"])
  assert ours.prepare["phase"] == "max" and ours.prepare["trains"] == "lora"
  assert not ours.prepare["performance"]["remat"]
  assert ours.prepare["performance"]["frozen_dtype"] == theirs.prepare["frozen_dtype"] == "bfloat16"
  assert ours.prepare["perturb_steps"] == theirs.prepare["steps"] == 6
  assert plan.contestants(config, by_race["remat"])[0].prepare["performance"]["remat"]
  # A network that is trained is stored in float32.
  assert all(
    "frozen_dtype" not in c.prepare for c in plan.contestants(config, by_race["cifar"])[1:]
  )
  variants = {
    name: [c.variant for c in plan.contestants(config, task) if c.framework == "torch"]
    for name, task in by_race.items()
  }
  assert variants["cifar_ours"] == variants["no_command_buffers"] == []
  assert variants["cifar"] == ["channels_last"]
  assert variants["compile"] == ["compile"] and variants["sd"] == ["channels_last"]
  # Nobody races where nobody was asked to.
  config = _gpu(peers__torch=())
  assert all(len(plan.contestants(config, task)) == 1 for task in plan.tasks(config))


def test_the_goals_races_fit_into_the_prepared_run() -> None:
  races = _gpu().races
  needed = {
    name: group.prepare_s + len(group.works) * group.race_s for name, group in races.groups.items()
  }
  goals, others = races.order[:5], races.order[5:]
  assert goals == ("cifar_ours", "cifar", "sd_ours", "sd", "compile")
  # `launch/gpu_run.sh` gives the race 355 s; 25 s are for the libraries and the card's rates.
  assert 25 + sum(needed[name] for name in goals) + runner._CLOSING <= 355
  # Nothing else could use the time in which `compile` is tried.
  assert min(needed[name] for name in others) > needed["compile"]


def test_races_of_other_programs_do_not_share_workers() -> None:
  config = _config("full")
  one = (("round",), ("demo",), (8,), ("float32",))
  same: list[dict[str, Any]] = [{}, {"phase": ""}, {"peers": ()}, {"prepare_s": 5.0}]
  other = [{"precision": "tf32"}, {"remat": True}, {"xla_flags": "--a=b"}, {"scan_steps": (5,)}]
  changes = [*same, *other, {"trains": "lora"}]
  config.races.groups = {str(i): benchmark.group(*one, **c) for i, c in enumerate(changes)}
  config.races.order = tuple(map(str, range(len(changes))))
  races = [task for task in plan.tasks(config) if task.section == "races"]
  assert len(races) == len(changes)
  assert len({plan.seat(task) for task in races[: len(same)]}) == 1
  assert len({plan.seat(task) for task in races[len(same) - 1 :]}) == 1 + 5
  assert plan.seat(races[len(same) + 1]) == ("demo", 8, "float32", "remat")


def test_several_may_be_selected() -> None:
  config = _gpu()
  names = lambda only: [task.spec["race"] for task in plan.tasks(config, only)]
  # The name of a group, though others contain it.
  assert names("cifar") == ["cifar"] * 3 and names("sd,tf32") == ["sd", "tf32"]
  assert names("^sd/,highest") == ["sd", "highest"]
  assert len(names("cifar/")) == 3 and len(names("cifar1")) > 6
  assert names("e{1,2}mat") == ["remat"]


def _contestants(key: str, name: str = "full", **changes):
  config = _config(name, **changes)
  (task,) = [task for task in plan.tasks(config) if task.key == key]
  return plan.contestants(config, task)


def _names(key: str, name: str = "full", **changes) -> list[str]:
  return [f"{c.framework} {c.variant}" for c in _contestants(key, name, **changes)]


def test_contestants() -> None:
  peers = ["torch as_written", "torch channels_last", "torch compile"]
  assert _names("max/demo/b16/float32") == ["jax one_step", "jax scan_3", *peers]
  assert _names("joint/demo/b16/float32") == ["jax joint", "jax separate_steps", *peers[1:]]
  assert _names("max/sd_small/b4/float32", races__scan_steps=(5,)) == ["jax scan_5", *peers[:2]]
  assert _names("max/demo/b16/float32", peers__torch=()) == ["jax one_step", "jax scan_3"]
  # torch.compile is left out where it was not asked for.
  assert _names("round/ddpm_cifar10/b16/float32", "default") == ["jax scan_12", *peers]
  assert _names("round/ddpm_cifar10/b8/float32", "default") == ["jax scan_12", *peers[:2]]
  # It has no form of the purifier.
  assert _names("impress/sd_small/b8/float32") == ["jax batch", *peers[:2]]


def test_both_sides_have_the_same_networks() -> None:
  ours, _, theirs, *_ = (c.prepare for c in _contestants("round/ddpm_cifar10/b16/bfloat16"))
  assert ours["unet"] == theirs["unet"] and theirs["unet"]["dropout"] == 0.1
  assert ours["batch"] == theirs["batch"] == 16
  assert ours["performance"]["dtype"] == theirs["dtype"] == "bfloat16"
  for key in ("max/sd_small/b4/float32", "impress/sd_small/b8/float32"):
    ours, *_, theirs = (c.prepare for c in _contestants(key))
    for field in ("unet", "vae", "image_size", "batch"):
      assert ours[field] == theirs[field]


def test_joint_steps_and_what_they_replace_are_called_alike() -> None:
  joint, separate, *_ = (c.prepare for c in _contestants("joint/ddpm_cifar10/b16/float32"))
  assert joint.pop("joint") and joint == separate and joint["train_steps"] == 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"peers__torch": ("jit",)}, "config.peers.torch: unknown 'jit'"),
    ({"races__min_cycles": 0}, "min_cycles is 0"),
    ({"races__scan_steps": (0, 3)}, "each at least 1"),
    ({"cost__batches": (0,)}, "at least 1"),
    ({"scaling__batch": 12}, "does not divide over 8 devices"),
    ({"cost__model": "huge"}, "config.cost.model: unknown 'huge'"),
    ({"races__order": ("huge",)}, "config.races.order: unknown 'huge'; known: .*latents"),
  ],
)
def test_mistakes(changes: dict, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    plan.tasks(_config(**changes))


@pytest.mark.parametrize(
  ("works", "models", "batch", "dtypes", "message"),
  [
    ("maxi", "demo", 8, "float32", "groups.one.works: unknown 'maxi'; known: min, max, round"),
    ("max", "huge", 8, "float32", "groups.one.models: unknown 'huge'; known: ddpm_cifar10, demo"),
    ("max", "demo", 8, "float16", "groups.one.dtypes: unknown 'float16'"),
    ("max", "demo", 0, "float32", "at least 1"),
    ("impress", "demo", 8, "float32", "'demo' has no autoencoder to purify by"),
    ("impress", "sd_small", 8, "bfloat16", "'impress' is raced in float32 only"),
  ],
)
def test_mistakes_in_a_group(works, models, batch, dtypes, message) -> None:
  config = _config()
  config.races.groups = {"one": benchmark.group((works,), (models,), (batch,), (dtypes,))}
  with pytest.raises(ConfigError, match=message):
    plan.tasks(config)


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("precision", "half", "groups.sd.precision: unknown 'half'; known: .*highest, tf32"),
    ("peers", ("jit",), "groups.sd.peers: unknown 'jit'; known: as_written"),
    ("phase", "both", "groups.sd.phase: unknown 'both'"),
    ("phase", "min", "groups.sd: a program of phase 'min' can only be raced as that"),
    ("works", ("impress",), "groups.sd"),
  ],
)
def test_mistakes_in_options(option: str, value, message: str) -> None:
  config = _gpu()
  config.races.groups.sd[option] = value
  with pytest.raises(ConfigError, match=message):
    plan.tasks(config)


def test_purifiers_are_raced_on_cpus() -> None:
  config = _gpu()
  config.races.groups.sd.update({"works": ("impress",), "phase": "", "dtypes": ("float32",)})
  with pytest.raises(ConfigError, match="'impress' is raced on CPUs only"):
    plan.tasks(config)


def test_kinds_of_products() -> None:
  config = _gpu()
  # Every race knows the rate of a product like its own.
  for task in plan.tasks(config):
    precision = task.spec["precision"]
    assert "/".join(filter(None, (task.spec["dtype"], precision))) in config.matmul_rates
  config.matmul_rates = ("float32/half",)
  with pytest.raises(ConfigError, match="config.matmul_rates: unknown 'float32/half'"):
    plan.tasks(config)


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
    assert list(config.models) == ["tiny"] and list(config.latent_models) == ["sd_tiny"]
  else:
    assert set(config.peers.torch) >= {"as_written", "channels_last"}
