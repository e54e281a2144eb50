"""Every config of every experiment, found by looking: it explains itself and everything builds."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import _cli
from udp_jax import protections, registry, threats
from udp_jax.data import batches, marks
from udp_jax.models import factory
from udp_jax.studies import rows, settings

ROOT = Path(__file__).resolve().parents[2]
FILES = {
  (path.parent.name, path.stem): path
  for place in ("experiments/configs", "udp_jax/studies/configs")
  for path in sorted((ROOT / place).glob("*/*.py"))
  if path.stem != "__init__"
}
NAMES = sorted(FILES)
# Those that describe a study of pictures of one size, and of pictures as they are; the others have
# tests beside what they configure.
_ROUNDS = [(experiment, name) for experiment, name in NAMES if experiment in ("udp", "eudp")]
STUDIES = [one for one in _ROUNDS if "pictures" not in _cli.get_config(*one)]
PICTURES = [one for one in _ROUNDS if one not in STUDIES]


def test_configs_are_found() -> None:
  assert {("eudp", "demo"), ("udp", "cifar10"), ("eudp", "cifar10_small")} <= set(NAMES)
  for experiment in {experiment for experiment, _ in NAMES}:
    assert _cli.config_names(experiment) == sorted(n for e, n in NAMES if e == experiment)


@pytest.mark.parametrize(("experiment", "name"), NAMES)
def test_config_is_short_and_says_how_to_run_it(experiment: str, name: str) -> None:
  module = importlib.import_module(_cli.config_modules(experiment)[name])
  text = FILES[experiment, name].read_text()
  assert len(text.splitlines()) <= 40
  first, *rest = (module.__doc__ or "").strip().splitlines()
  assert len(first) > 20 and first.endswith(".")
  assert f"python -m experiments.{experiment} --config={name}" in "".join(rest)
  assert f"  {name} " in _cli.describe_configs(experiment)


def test_what_fits_is_what_the_compiler_said() -> None:
  """The table in the header of `sd` has the figures of launch/AOT.md, of TPUs and of GPUs."""
  module = importlib.import_module("experiments.configs.eudp.sd")
  lines = [line.split() for line in (module.__doc__ or "").splitlines()]
  start = next(i for i, words in enumerate(lines) if words[:1] == ["target"])
  sizes, found = lines[start][4:], []
  compiled = (ROOT / "launch" / "AOT.md").read_text().splitlines()
  for target, memory, remat, *peaks in (
    line for line in lines[start + 1 :] if line[2:3] in (["on"], ["off"])
  ):
    assert len(peaks) == len(sizes) == 2
    for batch, peak in zip(sizes, peaks):
      if peak != "-":
        found.append((target, batch, remat))
        tpu = f"| {target} | {batch} | max | {peak} of {memory} |"
        gpu = f"| {target}, {batch}, {'no ' * (remat == 'off')}remat | after"
        assert any(
          line.startswith(tpu) or (line.startswith(gpu) and f"| {peak} of {memory} |" in line)
          for line in compiled
        )
  assert ("v5e:4x4", "4", "on") in found and ("h100", "8", "off") in found and len(found) >= 5
  config = _cli.get_config("eudp", "sd")
  assert config.global_batch_size == 4 and config.performance.remat


@pytest.mark.parametrize("variant", ["", *_cli.VARIANTS])
@pytest.mark.parametrize(("experiment", "name"), STUDIES)
def test_everything_builds_from_the_config(experiment: str, name: str, variant: str) -> None:
  config = _cli.get_config(experiment, f"{name}:{variant}")
  settings.check_values(config)
  assert config.rows[0] == marks.CLEAN
  methods = {rows.settings(config, row).method for row in config.rows[1:]}
  assert experiment in methods
  assert (experiment == "eudp") == ("eudp" in methods)
  model, unet, params = factory.build(config.model, config.performance)
  assert params is None
  assert model.shape[0] == config.data.image_size == unet.sample_size
  for row in config.rows:
    if row != marks.CLEAN:
      found = rows.settings(config, row)
      protection = protections.build(found.method, model, dict(found.options))
      assert found.num_rounds >= 1
      assert not protection.needs_params
      # A row that imitates another needs that one described too.
      assert protection.needs_reference == (found.imitates in config.protections)
  threat = threats.build(config.threat.name, model, dict(config.threat.options))
  assert threat.train_steps == config.threat.options.train_steps
  assert config.threat.options.sample_steps <= config.model.num_train_timesteps
  if variant == "smoke":
    assert config.data.source == "builtin" and "smoke" in config.notice


@pytest.mark.slow
def test_paper_setting_traces_without_allocating() -> None:
  config = _cli.get_config("eudp", "cifar10")
  model, _, _ = factory.build(config.model, config.performance)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(model.init, key)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 35_746_307
  batch = config.global_batch_size
  shape = (3, batch, *model.shape)
  data = batches.Batch(
    images=jax.ShapeDtypeStruct(shape, jnp.uint8),
    ids=jax.ShapeDtypeStruct(shape[:2], jnp.int32),
    weight=jax.ShapeDtypeStruct(shape[:2], jnp.float32),
  )
  row = rows.settings(config, "eudp")
  protection = protections.build(row.method, model, dict(row.options))
  state = jax.eval_shape(protection.init, key, data, None)
  state, info = jax.eval_shape(protection.update, key, state, data, None)
  assert state.delta.shape == shape and state.delta.dtype == jnp.float32
  assert info.train_loss.shape == (config.protections.eudp.train_steps,)
  threat = threats.build(config.threat.name, model, dict(config.threat.options))
  trained = jax.eval_shape(threat.init, key, None)
  trained, losses = jax.eval_shape(
    functools.partial(threat.update, num_steps=500), key, trained, data
  )
  assert losses.shape == (500,)
  samples = jax.eval_shape(
    functools.partial(threat.sample, num_samples=4), key, threat.final(trained)
  )
  assert samples.shape == (4, 32, 32, 3)


@pytest.mark.parametrize("variant", ["", *_cli.VARIANTS])
@pytest.mark.parametrize(("experiment", "name"), PICTURES)
def test_pictures_as_they_are(experiment: str, name: str, variant: str) -> None:
  config = _cli.get_config(experiment, f"{name}:{variant}")
  settings.check_values(config)
  assert config.rows[0] == marks.CLEAN and experiment in config.rows
  if variant == "smoke":
    assert config.data.source == "builtin" and config.model.path == "tiny_ldm"
  for row in config.rows[1:]:
    found = rows.settings(config, row)
    registry.check_options(
      registry.constructor("udp_jax.protections", found.method),
      row,
      _without_levels(found.options),
    )
    assert found.num_rounds >= 1


def _without_levels(options: Mapping) -> dict:
  return {name.removesuffix("_255"): value for name, value in options.items()}


@pytest.mark.parametrize(("experiment", "name"), [*STUDIES, *PICTURES])
def test_smoke_changes_no_setting_that_it_need_not(experiment: str, name: str) -> None:
  full, small = (_cli.get_config(experiment, f"{name}:{v}") for v in ("", "smoke"))
  assert (small.rows, small.radius_255, small.seed) == (full.rows, full.radius_255, full.seed)
  assert set(small.to_dict()) == set(full.to_dict())


@pytest.mark.long
def test_a_round_of_sdxl_traces_at_full_size() -> None:
  """At 1024 pixels, one picture: what `launch.aot --config=sdxl` compiles; nothing is allocated."""
  config = _cli.get_config("eudp", "sdxl")
  model, params = factory.abstract_model(config.model, config.performance)
  assert model.image_shape == (1024, 1024, 3) and model.shape == (128, 128, 4)
  assert sum(leaf.size for leaf in jax.tree.leaves(params["unet"])) == 2_567_463_684
  assert model.embed is not None
  cond = jax.eval_shape(model.embed, params, jax.ShapeDtypeStruct((1, 77), jnp.int32))
  assert cond.shape == (1, 78, 2048)
  key = jax.eval_shape(lambda: jax.random.key(0))
  data = batches.Batch(
    images=jax.ShapeDtypeStruct((1, 1, *model.image_shape), jnp.uint8),
    ids=jax.ShapeDtypeStruct((1, 1), jnp.int32),
    weight=jax.ShapeDtypeStruct((1, 1), jnp.float32),
    cond=jax.ShapeDtypeStruct((1, *cond.shape), jnp.float32),
  )
  row = rows.settings(config, "eudp")
  protection = protections.build(row.method, model, dict(row.options))
  state = jax.eval_shape(protection.init, key, data, params)
  state, info = jax.eval_shape(protection.update, key, state, data, params)
  assert state.delta.shape == (1, 1, 1024, 1024, 3)
  assert info.train_loss.shape == (config.protections.eudp.train_steps,)
