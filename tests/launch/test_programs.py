"""The production programs, compiled for one CPU device and for eight."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from experiments import _cli
from launch import chips, programs
from tests.launch.conftest import ROOT
from udp_jax.benchmark import flops, hlo
from udp_jax.errors import ConfigError
from udp_jax.ops import attention

# The production programs of a small config on eight CPU devices.
PROGRAM = """
import json
import jax
from experiments import _cli
from launch import chips, compiled, programs
from udp_jax.benchmark import hlo
from udp_jax.errors import ConfigError

config = _cli.get_config("eudp", "demo_pixels:smoke")
mesh = programs.make_mesh(jax.devices(), config)
target = chips.Target("cpu", "cpu", jax.devices(), len(jax.devices()), None, None)
setting = programs.setting(config, "eudp", mesh, target, 40, 16)
parts = programs.parts(setting)
found = {"parts": parts, "num_batches": setting.num_batches}
lowered = {part.name: programs.lower_part(setting, part) for part in parts}
lowered["round"] = programs.lower_round(setting)
for name, program in lowered.items():
  done = program.compile()
  text = hlo.parse(done.as_text())
  found[name] = {
    "collectives": [one._asdict() for one in hlo.collectives(text)],
    "loops": [loop._asdict() for loop in hlo.loops(text)],
    "donated": compiled.memory_gib(done.memory_analysis())["donated"],
  }
found["errors"] = []
for row, images, size in [
  ("eudp", 40, 12), ("eudp", 8, 16), ("random_noise", 40, 16), ("eudp_shuffled", 40, 16)
]:
  try:
    programs.setting(config, row, mesh, target, images, size)
  except ConfigError as error:
    found["errors"].append(str(error))
steps = programs.setting(config, "advdm", mesh, target, 40, 16)
found["advdm"] = programs.parts(steps)
with config.unlocked():
  config.protections.eudp.joint_gradients = True
found["joint"] = programs.parts(programs.setting(config, "eudp", mesh, target, 40, 16))
cifar = _cli.get_config("eudp", "cifar10")
found["num_images"] = programs.num_images(cifar)
found["method"] = programs.decide(cifar, "cuda").performance.backend
found["unchanged"] = cifar.performance.backend
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def one():
  """A config, and the setting of a row of it on this process's device."""
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  mesh = programs.make_mesh(jax.devices()[:1], config)
  target = chips.Target("cpu", "cpu", jax.devices()[:1], 1, None, None)

  def setting(row="eudp", images=40, size=16):
    return programs.setting(config, row, mesh, target, images, size)

  return config, setting


def test_parts_of_a_round_on_one_device(one):
  """demo_pixels:smoke trains 3 steps a round and perturbs each of the 3 batches once."""
  config, setting = one
  found = setting()
  assert found.num_batches == 3
  assert programs.parts(found) == [("min", 1, 3, 1), ("max", 2, 3, 3)]
  assert programs.parts(setting("advdm")) == [("step", None, 3, 3)]
  card = found._replace(gpu=attention.Gpu((9, 0), 91500))
  assert programs.parts(card) == [("min", 1, 3, 3), ("max", 2, 3, 3)]
  with config.unlocked():
    config.protections.eudp.joint_gradients = True
  assert programs.parts(setting()) == [("joint", None, 3, 1)]
  with config.unlocked():
    config.protections.eudp.joint_gradients = False


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"images": 8}, "8 pictures are less than one global batch of 16"),
    ({"row": "random_noise"}, "random_noise takes no steps"),
    ({"row": "eudp_shuffled"}, "eudp_shuffled takes no steps"),
  ],
)
def test_what_one_device_cannot_compile_is_refused(given, message, one):
  with pytest.raises(ConfigError, match=message):
    one[1](**given)


def test_a_target_decides_and_the_config_stays():
  cifar = _cli.get_config("eudp", "cifar10")
  assert programs.num_images(cifar) == 45_000
  assert programs.decide(cifar, "cuda").performance.backend == "gpu"
  assert cifar.performance.backend == ""


@pytest.mark.parametrize(
  ("gpu", "dtype", "fused"),
  [
    (((9, 0), 91500), "bfloat16", True),
    (((9, 0), 91500), "float32", False),
    *(
      pytest.param(gpu, "bfloat16", False, marks=pytest.mark.slow)
      for gpu in (((9, 0), None), ((7, 0), 91500))
    ),
  ],
  ids=str,
)
def test_the_target_s_attention_is_compiled(gpu, dtype, fused, monkeypatch):
  """demo_pixels:smoke has one head; this process has no GPU, and is not asked."""
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  with config.unlocked():
    config.performance.dtype = dtype
  mesh = programs.make_mesh(jax.devices()[:1], config)
  target = chips.Target("gpu", "cuda", jax.devices()[:1], 1, None, None, attention.Gpu(*gpu))
  setting = programs.setting(config, "eudp", mesh, target, 40, 16)
  lower = jax.stages.Traced.lower
  monkeypatch.setattr(
    jax.stages.Traced,
    "lower",
    lambda traced, **options: lower(traced, lowering_platforms=("cuda",), **options),
  )
  (part,) = [part for part in programs.parts(setting) if part.name == "max"]
  text = programs.lower_part(setting, part).as_text()
  assert ("__cudnn$fmhaSoftmaxBackward" in text) == fused


@pytest.mark.slow
@pytest.mark.parametrize(
  ("gpu", "repeats"),
  [
    pytest.param(None, 1, marks=pytest.mark.long),
    (attention.Gpu((9, 0), None), 7),
  ],
  ids=str,
)
def test_a_gpu_s_program_trains_as_often_as_a_round(gpu, repeats, one):
  """Its weights are brought into another order once a round, not once a step."""
  found = one[1]()
  found = found._replace(gpu=gpu, row=found.row.with_options(train_steps=7))
  part = programs.parts(found)[0]
  text = programs.lower_part(found, part).compile().as_text()
  assert (part.steps, part.repeats) == (7, repeats)
  counts = [loop.trip_count for loop in hlo.loops(hlo.parse(text))]
  assert (7 in counts) == (repeats == 7)


@pytest.mark.slow
@pytest.mark.skipif(
  not any(importlib.util.find_spec(plugin.module) for plugin in chips.PLUGINS.values()),
  reason=f"no compiler for GPUs is installed ({chips.install_gpu()})",
)
def test_a_gpu_s_program_has_the_products_of_a_cpu_s():
  """With the same forms of convolution and attention, though one calls libraries for them."""
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  with config.unlocked():
    config.performance.update({"conv_method": "xla", "attention": "chunked"})
  here = chips.Target("cpu", "cpu", jax.devices()[:1], 1, None, None)
  found = []
  for target in (here, chips.gpu_target("h100")):
    mesh = programs.make_mesh(target.devices, config)
    setting = programs.setting(config, "eudp", mesh, target, 40, 16)
    lowered = [programs.lower_part(setting, part) for part in programs.parts(setting)]
    found.append([flops.count(one.compile().as_text()).total for one in lowered])
  assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.fixture(scope="module")
def eight(eight_devices):
  """What `PROGRAM` found on eight CPU devices."""
  command = [sys.executable, "-c", PROGRAM]
  done = subprocess.run(
    command, cwd=ROOT, env=eight_devices, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_parts_of_a_round(eight):
  """demo_pixels:smoke trains 3 steps a round and perturbs each of the 3 batches once."""
  assert eight["num_batches"] == 3
  assert eight["parts"] == [["min", 1, 3, 1], ["max", 2, 3, 3]]
  assert eight["joint"] == [["joint", None, 3, 1]]
  assert eight["advdm"] == [["step", None, 3, 3]]


@pytest.mark.slow
def test_the_max_step_has_no_collectives(eight):
  assert eight["max"]["collectives"] == []


@pytest.mark.slow
def test_the_min_step_reduces_its_gradients_once(eight):
  found = eight["min"]["collectives"]
  assert {one["kind"] for one in found} == {"all-reduce"} and {one["runs"] for one in found} == {1}
  assert len(found) == 1 and found[0]["arrays"] > 1


@pytest.mark.slow
def test_the_round_runs_the_parts_as_often_as_they_say(eight):
  """The collectives of the min step, three times: its loop is found and multiplied."""
  kinds = [(one["kind"], one["arrays"], one["bytes"]) for one in eight["min"]["collectives"]]
  found = eight["round"]["collectives"]
  assert [(one["kind"], one["arrays"], one["bytes"]) for one in found] == kinds
  assert {one["runs"] for one in found} == {3}
  # The two parts, which a phase may leave out, are loops of at most one round.
  parts = [loop for loop in eight["round"]["loops"] if loop["trip_count"] is None]
  assert len(parts) == 2 and {loop["runs"] for loop in parts} == {1}


@pytest.mark.slow
def test_the_state_is_donated(eight):
  assert eight["round"]["donated"] > 0


@pytest.mark.slow
def test_what_cannot_be_compiled_is_refused(eight):
  divide, few, drawn, shuffled = eight["errors"]
  assert "12 pictures does not divide over 8 devices" in divide
  assert "8 pictures are less than one global batch of 16" in few
  assert "random_noise takes no steps" in drawn
  assert "eudp_shuffled takes no steps" in shuffled


@pytest.mark.slow
def test_what_a_backend_decides_is_decided_for_the_target(eight):
  assert eight["num_images"] == 45_000
  assert (eight["method"], eight["unchanged"]) == ("gpu", "")
