"""Meshes and placement on one device here, and on eight in a process of its own.

The second part compiles real rounds for eight devices, counts the collectives in the program and
compares what comes out with one device: here for a method of each kind, in `make test_slow` for all
the others. It builds its network from the package's own convolutions (direct and Winograd),
normalisation and attention; a whole U-Net would only compile longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from udp_jax import protections
from udp_jax.errors import ConfigError
from udp_jax.runtime import mesh as mesh_lib

DEVICES = 8
LEAVES = 7  # Of the network's parameters.
METHODS_OF_EACH_KIND = ("udp", "advdm", "random_noise")
_OTHERS = [name for name in protections.available() if name not in METHODS_OF_EACH_KIND]
PROGRAM = '''
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.pallas import tpu as pltpu
from udp_jax import protections, registry
from udp_jax.data import batches as batches_lib
from udp_jax.models import sharded
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import sharding
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import attention, schedules
from udp_jax.ops.attention import dot_product_attention
from udp_jax.ops.conv import conv2d
from udp_jax.ops.norm import group_norm
from udp_jax.protections.base import PERTURB

SIZE, CHANNELS = 16, 16
SHAPES = {"inside": (3, 3, 3, CHANNELS), "winograd": (3, 3, CHANNELS, CHANNELS),
          "down": (3, 3, CHANNELS, CHANNELS), "qkv": (CHANNELS, 3 * CHANNELS),
          "outside": (3, 3, CHANNELS, 3), "scale": (CHANNELS,), "bias": (CHANNELS,)}


def init(key):
  keys = jax.random.split(key, len(SHAPES))
  return {n: 0.3 * jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items())}


def apply(p, x, timesteps, cond=None, key=None):
  h = conv2d(x, p["inside"], method="direct")
  h = h + jnp.sin(timesteps / 10.0)[:, None, None, None]
  h = group_norm(h, p["scale"], p["bias"], num_groups=4, activation="silu")
  h = h + conv2d(h, p["winograd"], method="winograd")
  low = conv2d(h, p["down"], stride=2, padding=((0, 1), (0, 1)), method="direct")
  tokens = low.reshape(low.shape[0], -1, CHANNELS) @ p["qkv"]
  q, k, v = (t[:, :, None] for t in jnp.split(tokens, 3, axis=-1))
  low = low + dot_product_attention(q, k, v).reshape(low.shape)
  low = jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2)
  return conv2d(h + low, p["outside"], method="direct")


model = DiffusionModel(init, lambda p, x, k: 2 * x - 1, apply, lambda p, x: (x + 1) / 2, None,
                       schedules.linear(50, beta_end=0.2), (SIZE, SIZE, 3), (SIZE, SIZE, 3))
pictures = np.random.default_rng(0).integers(0, 256, (22, SIZE, SIZE, 3), dtype=np.uint8)
KEY, weights = jax.random.key(1), init(jax.random.key(0))
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
PATTERN = rf"= (.*?) ({KINDS})(?:-start)?\\("


def collectives(program):
  """(kind, number of arrays, element types) of each collective in a compiled program."""
  ops = re.findall(PATTERN, program.as_text())
  return [(op, shapes.count("["), re.findall(r"([a-z]+[0-9]+)\\[", shapes)) for shapes, op in ops]


def options(function):
  given = {"radius_255": 8, "step_size_255": 2, "train_steps": 2, "perturb_steps": 1}
  given["start"] = "zero"  # Draws take long to compile, and the steps draw enough.
  known = registry.fields(function)
  return {k: v for k, v in given.items() if k.removesuffix("_255") in known}


found = {"devices": jax.device_count(), "methods": {}}
methods, splits, flash = (words.split() for words in sys.argv[1:])
for name in methods:
  function = registry.constructor("udp_jax.protections", name)
  try:
    protection = protections.build(name, model, options(function))
  except ConfigError as error:
    assert "latent" in str(error), error  # This model works on pixels.
    continue
  reference = 255 - pictures if protection.needs_reference else None
  batches = batches_lib.make_batches(pictures, 16, reference=reference)
  deltas, seen = [], {}
  for devices in (jax.devices(), jax.devices()[:1]):
    mesh = mesh_lib.make_mesh(devices, fsdp=min(2, len(devices)))
    data = mesh_lib.place_batches(batches, mesh)
    params = mesh_lib.replicate(weights, mesh)
    state = jax.jit(protection.init)(KEY, data, params)
    update = jax.jit(protection.update).lower(KEY, state, data, params).compile()
    for _ in range(2):
      state, info = update(KEY, state, data, params)
    deltas.append(np.asarray(state.delta))
    if len(devices) > 1:
      seen["trains"] = hasattr(state, "surrogate")
      seen["collectives"] = collectives(update)
      seen["shards"] = sorted({str(s.data.shape) for s in state.delta.addressable_shards})
      seen["devices"] = len({s.device for s in state.delta.addressable_shards})
  seen["moved"] = float(np.abs(deltas[0]).mean())
  seen["different"] = float(np.mean(deltas[0] != deltas[1]))
  found["methods"][name] = seen
# Weights split over four devices; and both gradients from one backward pass.
found["split"] = {}
udp = registry.constructor("udp_jax.protections", "udp")
for variant in splits:
  joint = variant == "joint"
  deltas, seen = [], {}
  for devices in (jax.devices(), jax.devices()[:1]):
    mesh = mesh_lib.make_mesh(devices, fsdp=min(4, len(devices)))
    split = sharded.split_weights(model, mesh)
    protection = protections.build("udp", split, options(udp) | {"joint_gradients": joint})
    data = mesh_lib.place_batches(batches_lib.make_batches(pictures, 16), mesh)
    shapes = jax.eval_shape(protection.init, KEY, data, None)
    shardings = sharding.state_shardings(shapes, data.ids.shape, mesh)
    state = jax.jit(protection.init, out_shardings=shardings)(KEY, data, None)
    run = jax.jit(protection.update, out_shardings=(shardings, None))
    update = run.lower(KEY, state, data, None).compile()
    if len(devices) > 1:
      weight = state.surrogate.params["winograd"]
      moment = state.surrogate.opt_state[1][0].mu["winograd"]
      seen["weight"] = [list(map(str, leaf.sharding.spec)) for leaf in (weight, moment)]
      seen["small"] = list(map(str, state.surrogate.params["bias"].sharding.spec))
      seen["collectives"] = collectives(update)
      if not joint:
        part = jax.jit(lambda k, s, d: protection.update(k, s, d, None, jnp.int32(PERTURB)),
                       out_shardings=(shardings, None))
        seen["max_step"] = collectives(part.lower(KEY, state, data).compile())
    for _ in range(2):
      state, info = update(KEY, state, data, None)
    deltas.append(np.asarray(state.delta))
  seen["moved"] = float(np.abs(deltas[0]).mean())
  seen["different"] = float(np.mean(deltas[0] != deltas[1]))
  found["split"][variant] = seen

if flash:
  same = lambda params, x, *_: attention.flash_attention(x, x, x)
  mesh = mesh_lib.make_mesh(fsdp=2)
  split = sharded.split_weights(DiffusionModel(None, same, same, same, None, None, (), ()), mesh)
  x = jax.random.normal(KEY, (jax.device_count(), 128, 1, 8))
  with pltpu.force_tpu_interpret_mode():
    out = jax.jit(split.apply)({}, mesh_lib.place_batches(x[None], mesh)[0], None)
  found["flash"] = float(np.abs(out - attention.dot_product_attention(x, x, x)).max())
try:
  mesh_lib.place_batches(batches_lib.make_batches(pictures, 12), mesh_lib.make_mesh())
except ConfigError as error:
  found["refusal"] = str(error)
print(json.dumps(found))
'''


def test_mesh_and_placement_on_one_device():
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  assert mesh.axis_names == mesh_lib.AXES and mesh.size == 1
  data = {"images": np.arange(24.0).reshape(2, 3, 4), "nothing": None}
  placed = mesh_lib.place_batches(data, mesh)
  np.testing.assert_array_equal(placed["images"], data["images"])
  assert placed["nothing"] is None
  copies = mesh_lib.replicate({"w": np.ones(3)}, mesh)
  assert copies["w"].sharding.is_fully_replicated


class HalfMesh(NamedTuple):
  """What `own_rows` looks at, of a mesh over two processes with two devices each."""

  devices: np.ndarray
  size: int = 4


class Device:
  def __init__(self, process_index: int):
    self.process_index = process_index


@pytest.mark.parametrize("process", [0, 1])
def test_rows_of_a_process_are_those_of_its_lanes(process, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: process)
  mesh = HalfMesh(np.array([[Device(0)], [Device(0)], [Device(1)], [Device(1)]]))
  # Three batches of eight; the last has five pictures and three repeats.
  rows = mesh_lib.own_rows(3, 8, 21, mesh).tolist()
  first, second = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [4, 5, 6, 7, 12, 13, 14, 15, 20]
  assert rows == (second if process else first)


def test_what_is_fetched_belongs_to_the_rows():
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  leaf = np.arange(2 * 3 * 4).reshape(2, 3, 4)
  rows = mesh_lib.own_rows(2, 3, 5, mesh)
  fetched = mesh_lib.fetch_own(mesh_lib.place_batches(leaf, mesh), 5)
  np.testing.assert_array_equal(fetched, leaf.reshape(6, 4)[rows])
  assert fetched.shape == (5, 4)


def test_to_host_and_back():
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  tree = {"a": np.arange(6.0).reshape(2, 3), "b": (np.int32(3), None)}
  back = mesh_lib.to_host(mesh_lib.replicate(tree, mesh))
  assert isinstance(back["a"], np.ndarray) and back["b"][1] is None
  np.testing.assert_array_equal(back["a"], tree["a"])
  assert back["b"][0] == 3


def test_fsdp_must_divide_the_devices():
  with pytest.raises(ConfigError, match="fsdp=2 does not divide 1 devices"):
    mesh_lib.make_mesh(jax.devices()[:1], fsdp=2)


def _run(environment, methods, splits, flash=""):
  """What `PROGRAM` found on eight CPU devices."""
  command = [sys.executable, "-c", PROGRAM, " ".join(methods), " ".join(splits), flash]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["devices"] == DEVICES
  return found


@pytest.fixture(scope="module")
def eight(eight_devices):
  return _run(eight_devices, METHODS_OF_EACH_KIND, ["udp"], "flash")


@pytest.fixture(scope="module")
def others(eight_devices):
  """The same for all other methods."""
  return _run(eight_devices, _OTHERS, ["joint"])


@pytest.mark.slow
def test_a_batch_that_does_not_divide(eight):
  message = "a global batch of 12 pictures does not divide over 8 devices; set --config.global_b"
  assert message in eight["refusal"]


@pytest.fixture(
  params=[
    *(pytest.param((name, "eight"), id=name) for name in METHODS_OF_EACH_KIND),
    *(pytest.param((name, "others"), id=name, marks=pytest.mark.long) for name in _OTHERS),
  ]
)
def method(request):
  """A method's name and what was seen of it; those for latent models alone are left out."""
  name, run = request.param
  found = request.getfixturevalue(run)["methods"]
  if name in _OTHERS and name not in found:
    pytest.skip("for latent models")
  return name, found[name]


@pytest.fixture(
  params=[
    pytest.param(("udp", "eight"), id="udp"),
    pytest.param(("joint", "others"), id="joint", marks=pytest.mark.long),
  ]
)
def split(request):
  """What was seen of `udp` with weights that are split."""
  variant, run = request.param
  return request.getfixturevalue(run)["split"][variant]


@pytest.mark.slow
def test_pictures_are_split_over_the_devices(method):
  _, seen = method
  assert seen["devices"] == DEVICES
  assert seen["shards"] == ["(2, 2, 16, 16, 3)"]


@pytest.mark.slow
def test_eight_devices_make_the_delta_of_one(method):
  _, seen = method
  if seen["trains"]:
    # The surrogate's gradient is summed in another order, so its weights may differ in the last
    # bits, and with them, rarely, the sign of a tiny gradient of delta.
    assert seen["different"] < 0.01
  else:
    # Nothing is summed over pictures: bit for bit.
    assert seen["different"] == 0
  assert seen["moved"] > 0.005


@pytest.mark.slow
def test_collectives_of_a_round(method):
  """None in the max step. In the min step one reduction: of gradients, loss and count together."""
  name, seen = method
  # ASPL trains twice a round; nobody asks for the loss of the copy that it throws away.
  more = {"aspl": [1, 2]}.get(name, [2] if seen["trains"] else [])
  assert sorted(arrays for _, arrays, _ in seen["collectives"]) == [LEAVES + n for n in more]
  for operation, _, kinds in seen["collectives"]:
    assert (operation, set(kinds)) == ("all-reduce", {"f32"})


@pytest.mark.slow
def test_split_weights_make_the_same_delta(split):
  # Weights and the optimiser's moments lie in quarters; what is small lies everywhere.
  assert split["weight"] == [["None", "None", "None", "fsdp"]] * 2
  assert "fsdp" not in split["small"]
  # Sums over pictures are made in another order: see above.
  assert split["different"] < 0.01
  assert split["moved"] > 0.005


@pytest.mark.slow
def test_split_weights_are_gathered_and_activations_stay(split):
  kinds = {operation for operation, _, _ in split["collectives"]}
  assert "all-gather" in kinds
  assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
def test_held_weights_are_gathered_once_for_all_max_steps(eight):
  # Two kernels are large enough to be split; nothing else is sent, however many the steps.
  assert {operation for operation, _, _ in eight["split"]["udp"]["max_step"]} == {"all-gather"}
  assert sum(arrays for _, arrays, _ in eight["split"]["udp"]["max_step"]) == 2


@pytest.mark.slow
def test_a_kernel_that_xla_cannot_split_takes_each_device_its_own_pictures(eight):
  assert eight["flash"] < 1e-5
