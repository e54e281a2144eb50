"""Rounds over host shards: equal to resident rounds where they can be, and bounded in memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from udp_jax import protections
from udp_jax.data import batches as batches_lib
from udp_jax.errors import ConfigError, DivergedError
from udp_jax.protections import constraints
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE
from udp_jax.runtime import loop
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime.checkpoint import Checkpoints
from udp_jax.stages import streaming

pytestmark = pytest.mark.usefixtures("built_once")

KEY = jax.random.key(5)
RADIUS, STEP = 8 / 255, 3 / 255
METHODS = {
  "advdm": {"radius": RADIUS, "step_size": STEP},
  "diffusion_guard": {"radius": RADIUS, "step_size": STEP},
  "sds": {"radius": RADIUS, "step_size": STEP},
  "random_noise": {"radius": RADIUS},
  "matched_noise": {"radius": RADIUS},
  "shuffled_delta": {"radius": RADIUS},
}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
  return mesh_lib.make_mesh(jax.devices()[:1])


def assert_same(one, other):
  """Bit for bit, and of one structure."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def resident(protection, batches, params, mesh, rounds):
  """State and last info of the round that holds everything on the device."""
  data = mesh_lib.place_batches(batches, mesh)
  state = jax.jit(protection.init)(KEY, data, params)
  update = jax.jit(protection.update, donate_argnums=1)
  for _ in range(rounds):
    state, info = update(KEY, state, data, params, jnp.int32(WHOLE))
  return state, info


def streamed(stream, params, rounds, **options):
  """State and last report after whole rounds."""
  state = streaming.init(KEY, stream, params)
  while state.visit < rounds * len(stream.shards):
    state, report = streaming.advance(KEY, stream, state, params, **options)
  return state, report


def bilevel(model, **options):
  game = {"train_steps": 4, "perturb_steps": 2, "start": "sign", "learning_rate": 8e-4}
  options = {"radius": RADIUS, "step_size": STEP, **game, **options}
  return protections.build("udp", model, options)


@pytest.fixture(scope="module")
def learner(gaussian_model, pictures, mesh):
  """A method that trains, on 7 batches of 3 in shards of 2, 2, 2 and 1."""
  batches = batches_lib.make_batches(pictures, 3)
  protection = bilevel(gaussian_model)
  stream = streaming.make(KEY, protection, batches, None, mesh, shard_batches=2)
  assert len(stream.shards) == stream.train_visits == 4 and stream.protection.trains == 1
  return stream


# ---- equal to the resident round ----


def test_one_shard_is_the_resident_round(gaussian_model, pictures, mesh):
  batches = batches_lib.make_batches(pictures, 3)
  protection = bilevel(gaussian_model)
  expected, info = resident(protection, batches, None, mesh, 3)
  stream = streaming.make(KEY, protection, batches, None, mesh, shard_batches=10)
  assert stream.num_real == (7,)
  state, report = streamed(stream, None, 3)
  assert_same(state.shared.surrogate, expected.surrogate)
  assert_same(state.shards[0].inner, jax.tree.map(np.asarray, expected.inner))
  assert state.shared.round == expected.round == 3
  np.testing.assert_array_equal(report.loss, info.loss)
  np.testing.assert_array_equal(report.train_loss, info.train_loss)


@pytest.mark.parametrize(
  "name, shard_batches", [*((name, 3) for name in METHODS), ("advdm", 1), ("shuffled_delta", 1)]
)
def test_pictures_of_their_own_are_the_resident_ones(
  gaussian_model, pictures, mesh, name, shard_batches
):
  """Any number of shards, a padded one among them (7 batches in shards of 3, 2 and 2)."""
  protection = protections.build(name, gaussian_model, METHODS[name])
  reference = 255 - pictures if protection.needs_reference else None
  batches = batches_lib.make_batches(pictures, 3, reference=reference)
  params = gaussian_model.init(jax.random.key(1)) if protection.needs_params else None
  expected, info = resident(protection, batches, params, mesh, 3)
  stream = streaming.make(KEY, protection, batches, params, mesh, shard_batches=shard_batches)
  assert stream.num_real == {3: (3, 2, 2), 1: (1,) * 7}[shard_batches]
  state, report = streamed(stream, params, 3)
  np.testing.assert_array_equal(streaming.delta(stream, state), expected.delta)
  np.testing.assert_array_equal(report.loss, info.loss)
  real = batches.weight > 0
  rms = np.sqrt(np.mean(np.square(np.asarray(expected.delta)[real])))
  np.testing.assert_allclose(report.delta_rms, rms, rtol=1e-5)


def test_every_method_is_covered(gaussian_model):
  """All that work on pixels: those above, and those that train a surrogate, within shards."""
  on_pixels = set()
  for name in protections.available():
    try:
      protections.build(name, gaussian_model, METHODS.get(name, METHODS["advdm"]))
      on_pixels.add(name)
    except ConfigError as error:
      assert "latent" in str(error)
  assert on_pixels == {*METHODS, "udp", "eudp", "fsmg", "aspl", "metacloak"}


@pytest.mark.slow
def test_a_real_network(tiny_model, pictures, mesh):
  protection = protections.build("advdm", tiny_model.model, METHODS["advdm"])
  batches = batches_lib.make_batches(pictures, 4)
  expected, _ = resident(protection, batches, tiny_model.params, mesh, 2)
  params = mesh_lib.replicate(tiny_model.params, mesh)
  stream = streaming.make(KEY, protection, batches, params, mesh, shard_batches=2)
  state, _ = streamed(stream, params, 2)
  np.testing.assert_array_equal(streaming.delta(stream, state), expected.delta)


# ---- order, interruption, padding ----


def test_the_order_is_of_the_key_and_the_round():
  orders = [tuple(streaming._order(KEY, i, 6)) for i in range(8)]
  assert all(sorted(order) == list(range(6)) for order in orders)
  assert len(set(orders)) > 6
  assert orders[3] == tuple(streaming._order(KEY, 3, 6))
  assert orders != [tuple(streaming._order(jax.random.key(6), i, 6)) for i in range(8)]


def test_the_order_matters_and_timing_does_not(learner, monkeypatch):
  expected, whole = streamed(learner, None, 2)
  timed, report = streamed(learner, None, 2, timed=True)
  assert_same(timed, expected)
  assert set(report.seconds) == {TRAIN, PERTURB} and not whole.seconds
  np.testing.assert_array_equal(report.loss, whole.loss)
  np.testing.assert_array_equal(report.train_loss, whole.train_loss)
  monkeypatch.setattr(streaming, "_order", lambda key, number, count: np.arange(count))
  other, _ = streamed(learner, None, 2)
  assert np.any(streaming.delta(learner, other) != streaming.delta(learner, expected))


def test_interrupted_in_the_middle_of_a_round(learner, tmp_path):
  expected, _ = streamed(learner, None, 3)
  state = streaming.init(KEY, learner, None)
  for _ in range(2):  # 3 visits of the first round, then its last.
    state, report = streaming.advance(KEY, learner, state, None, max_visits=3)
  state, report = streaming.advance(KEY, learner, state, None, max_visits=2)
  assert state.visit == 6
  visited = np.isfinite(report.loss).all(axis=1)
  assert 2 < visited.sum() < 5 and report.train_loss.shape == (2,)
  checkpoints = Checkpoints(tmp_path, every=1)
  checkpoints.save(6, state, wait=True)
  restored = checkpoints.restore(streaming.init(KEY, learner, None))
  checkpoints.close()
  assert_same(restored, state)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored.shards))
  while restored.visit < 12:
    restored, _ = streaming.advance(KEY, learner, restored, None)
  assert_same(restored, expected)


def test_host_arrays_are_not_written_to(learner):
  state = streaming.init(KEY, learner, None)
  for _ in range(2):
    before = jax.tree.map(np.copy, state.shards)
    new, _ = streaming.advance(KEY, learner, state, None)
    assert_same(state.shards, before)
    moved = [np.any(a.delta != b.delta) for a, b in zip(new.shards, state.shards, strict=True)]
    assert all(moved)
    state = new


def test_padding_changes_nothing(learner):
  """Neither the surrogate nor a picture sees what a padded shard is padded with."""
  expected, report = streamed(learner, None, 2)
  assert learner.num_real == (2, 2, 2, 1)
  last = learner.shards[3]
  assert last.weight[0].any() and not last.weight[1].any()
  other = last._replace(images=np.stack([last.images[0], 255 - last.images[1]]))
  changed = learner._replace(shards=(*learner.shards[:3], other))
  state, other_report = streamed(changed, None, 2)
  assert np.any(state.shards[3].delta[1] != expected.shards[3].delta[1])
  np.testing.assert_array_equal(streaming.delta(changed, state), streaming.delta(learner, expected))
  assert_same(state.shared, expected.shared)
  np.testing.assert_array_equal(other_report.loss, report.loss)
  assert other_report.delta_rms == report.delta_rms


# ---- what a round means ----


@pytest.mark.parametrize(
  "train_steps, shards, visits", [(30, 1, 1), (30, 4, 3), (30, 7, 6), (30, 100, 30), (31, 5, 1)]
)
def test_train_steps_of_a_round_are_kept(gaussian_model, train_steps, shards, visits):
  protection = bilevel(gaussian_model, train_steps=train_steps)
  divided, train_visits = protection.divided(shards)
  assert train_visits == visits and divided.trains * train_visits == train_steps
  assert protection.trains == train_steps


def test_a_method_that_does_not_train_is_not_divided(gaussian_model):
  protection = protections.build("advdm", gaussian_model, METHODS["advdm"])
  assert protection.divided(5) == (protection, 5) and protection.trains == 0


def test_counts_of_rounds_in_visits(gaussian_model, pictures, mesh):
  """4 shards, 2 of whose visits train 3 steps; a round of warm-up; a restart after two rounds."""
  protection = bilevel(gaussian_model, train_steps=6, warmup_rounds=1, restart_every=2)
  batches = batches_lib.make_batches(pictures, 3)
  stream = streaming.make(KEY, protection, batches, None, mesh, shard_batches=2)
  assert stream.train_visits == 3 and stream.protection.trains == 2
  state = start = streaming.init(KEY, stream, None)
  counts, train_losses = [], []
  for _ in range(3):
    before = state.shared.surrogate.params["mean"].copy()
    state, report = streaming.advance(KEY, stream, state, None)
    counts.append([set(shard.inner.step.tolist()) for shard in state.shards])
    train_losses.append(report.train_loss)
    moved = np.abs(state.shared.surrogate.params["mean"] - before).max()
  assert counts == [[{0}] * 4, [{2}] * 4, [{4}] * 4]
  assert [len(losses) for losses in train_losses] == [6, 6, 6]
  assert np.isfinite(train_losses).all()
  # Adam moves a weight by at most about its learning rate: only fresh weights lie further away.
  assert moved > 10 * 6 * 8e-4
  assert state.shared.surrogate.step == 18 and state.shared.round == 12
  assert np.any(streaming.delta(stream, state) != streaming.delta(stream, start))


def to_grey(tx):
  """Pulls every pixel to medium grey."""

  def distance(params, images, cond, keys):
    del params, cond, keys
    return jnp.square(images - 0.5).mean((1, 2, 3)), {}

  return protections.pgd(distance, constraints.linf(RADIUS), tx)


def test_nan_ends_the_loop(pictures, mesh):
  inner = to_grey(optax.scale_by_schedule(lambda step: jnp.where(step < 2, 0.01, jnp.nan)))
  batches = batches_lib.make_batches(pictures, 3)
  stream = streaming.make(
    KEY, protections.over_batches(inner), batches, None, mesh, shard_batches=2
  )

  def advance(state, position):
    state, report = streaming.advance(KEY, stream, state, None)
    return loop.Advance(state, position + 1, {"delta_rms": report.delta_rms})

  state = streaming.init(KEY, stream, None)
  with pytest.raises(DivergedError, match="delta_rms is nan at round 3 of 5"):
    work = loop.Work("x", "round", 5, must_be_finite=("delta_rms",), progress=False)
    loop.run(advance, state, work)


# ---- memory and overlap ----


def test_two_shards_are_on_the_device(pictures, mesh, monkeypatch):
  """Of 10: pictures and state, as many bytes as arrays are alive at the fullest moments."""
  batches = batches_lib.make_batches(np.tile(pictures, (10, 1, 1, 1)), 10)
  protection = protections.over_batches(to_grey(protections.sign_descent(STEP)))
  stream = streaming.make(KEY, protection, batches, None, mesh, shard_batches=2)
  state = streaming.init(KEY, stream, None)
  one_shard = sum(leaf.nbytes for leaf in jax.tree.leaves((stream.shards[0], state.shards[0])))
  assert len(stream.shards) == 10
  seen = []

  def live():
    # Two arrays of one buffer are there once.
    return {a.unsafe_buffer_pointer(): a.nbytes for a in jax.live_arrays() if a.nbytes}

  gc.collect()
  before = set(live())

  def look():
    seen.append(sum(size for buffer, size in live().items() if buffer not in before))

  def place(data, mesh):
    placed = mesh_lib.place_batches(data, mesh)
    look()
    return placed

  def update(*arguments):
    look()
    result = stream.update(*arguments)
    look()
    return result

  monkeypatch.setattr(streaming, "place_batches", place)
  spied = stream._replace(update=update)
  for _ in range(2):
    state, _ = streaming.advance(KEY, spied, state, None)
  assert len(seen) == 2 * 10 * 3
  # While one shard runs the next one is there; without its own pictures here, as nothing but the
  # running program holds them any more.
  assert 1.7 * one_shard < max(seen) < 2.05 * one_shard


# ---- several devices ----

DEVICES = 8
PROGRAM = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from udp_jax import protections
from udp_jax.data import batches as batches_lib
from udp_jax.protections import constraints
from udp_jax.protections.base import Rounds
from udp_jax.protections.options import Spectrum
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.stages import streaming

KEY, mesh = jax.random.key(1), mesh_lib.make_mesh(fsdp=2)
pictures = np.random.default_rng(0).integers(0, 256, (44, 4, 4, 3), dtype=np.uint8)
batches = batches_lib.make_batches(pictures, 8)
COLLECTIVE = r" (?:all-|collective-|reduce-scatter)[a-z-]*[(]"
params = mesh_lib.replicate({"w": np.linspace(-1, 1, 48 * 48, dtype=np.float32)}, mesh)


def objective(params, images, cond, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  flat = (images + noise).reshape(len(images), -1)
  return jnp.square(flat @ params["w"].reshape(48, 48)).mean(1), {}


inner = protections.pgd(objective, constraints.linf(0.1), protections.sign_descent(0.02))
learner = protections.bilevel(
  inner, objective, optax.adam(1e-3), Rounds(train_steps=2),
  init_params=lambda key: {"w": jax.random.normal(key, (48 * 48,))},
)
found = {"devices": jax.device_count()}
low = constraints.linf(0.1, spectrum=Spectrum("gaussian", band_sigma=1.0))
banded = protections.pgd(objective, low, protections.sign_descent(0.02))
methods = {
  "fixed": (protections.over_batches(inner), 2),
  "banded": (protections.over_batches(banded), 2),
  "learner": (learner, 6),
}
for name in sys.argv[1:]:
  protection, shard_batches = methods[name]
  data = mesh_lib.place_batches(batches, mesh)
  stream = streaming.make(KEY, protection, batches, params, mesh, shard_batches=shard_batches)
  state = jax.device_put(jax.jit(protection.init)(KEY, data, params), stream.shardings)
  update = jax.jit(protection.update, out_shardings=(stream.shardings, None))
  streamed, seen = streaming.init(KEY, stream, params), []

  def spy(key, given, *rest):
    seen.append(sorted({str(s.data.shape) for s in given.delta.addressable_shards}))
    return stream.update(key, given, *rest)

  for _ in range(2):
    state, _ = update(KEY, state, data, params)
    streamed, _ = streaming.advance(KEY, stream._replace(update=spy), streamed, params)
  surrogate = jax.tree.leaves(getattr(streamed.shared, "surrogate", None))
  found[name] = {
    "visits": len(seen),
    "shapes": seen[0],
    "same": bool(np.array_equal(streaming.delta(stream, streamed), state.delta)),
    "moved": float(np.abs(state.delta).mean()),
    "collectives": len(re.findall(COLLECTIVE, stream.update.as_text())),
    "surrogate": [list(leaf.sharding.spec) for leaf in surrogate if leaf.ndim],
  }
print(json.dumps(found))
"""


def _on_eight(eight_devices, name):
  """What `PROGRAM` finds of one of its methods on eight devices."""
  command = [sys.executable, "-c", PROGRAM, name]
  done = subprocess.run(command, env=eight_devices, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["devices"] == DEVICES
  return found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", "banded"])
def test_shards_are_split_over_the_devices(name, eight_devices):
  fixed = _on_eight(eight_devices, name)
  assert fixed["visits"] == 6 and fixed["shapes"] == ["(2, 1, 4, 4, 3)"]
  assert fixed["same"] and fixed["moved"] > 0.01 and fixed["collectives"] == 0


@pytest.mark.slow
def test_weights_are_split_over_the_devices_between_visits(eight_devices):
  learner = _on_eight(eight_devices, "learner")
  assert learner["visits"] == 2 and learner["shapes"] == ["(6, 1, 4, 4, 3)"]
  assert learner["same"] and learner["moved"] > 0.01 and learner["collectives"] > 0
  # Weights and Adam's two moments stay split between the visits.
  assert learner["surrogate"] == [["fsdp"]] * 3


# ---- refusals ----


@pytest.mark.parametrize("shard_batches", [0, -1])
def test_shards_need_a_batch(shard_batches):
  with pytest.raises(ConfigError, match=f"shard_batches is {shard_batches}"):
    streaming.count_shards(3, shard_batches)


def test_several_processes_are_refused(gaussian_model, pictures, mesh, monkeypatch):
  monkeypatch.setattr(Mesh, "is_multi_process", property(lambda self: True))
  protection = protections.build("random_noise", gaussian_model, METHODS["random_noise"])
  batches = batches_lib.make_batches(pictures, 3)
  with pytest.raises(ConfigError, match="streams within one process"):
    streaming.make(KEY, protection, batches, None, mesh, shard_batches=2)


def test_a_method_without_parts_trains_in_every_visit(gaussian_model, pictures, mesh):
  options = METHODS["advdm"] | {"train_steps": 3}
  protection = protections.build("fsmg", gaussian_model, options)
  batches = batches_lib.make_batches(pictures, 3)
  params = gaussian_model.init(jax.random.key(1))
  with pytest.raises(ConfigError, match="cannot be divided into 4 visits of which 3 train"):
    streaming.make(KEY, protection, batches, params, mesh, shard_batches=2)
