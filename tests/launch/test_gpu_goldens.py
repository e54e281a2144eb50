"""Known values for GPUs: this machine reproduces them, and a small change of a weight is seen."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from launch import cudnn
from launch import gpu_goldens as lib
from udp_jax.ops.attention import Gpu

FLOAT32 = lib.MODES["highest"]._replace(output=2e-5, gradient=5e-5)
MOST_BYTES = 300_000


def _found(name: str, dtype: str = "float32", change: float = 1.0) -> dict[str, np.ndarray]:
  made = lib.prepare(name, {"dtype": dtype, "precision": "highest"})
  # A kernel in the middle of the network.
  kernels = [path for path, leaf in jax.tree.leaves_with_path(made.weights) if leaf.ndim == 4]
  chosen = kernels[len(kernels) // 2]
  scaled = lambda path, leaf: leaf * np.float32(change if path == chosen else 1)
  weights = jax.tree_util.tree_map_with_path(scaled, made.weights)
  return lib.sketches(*jax.device_get(made.run(weights, made.inputs, made.cotangent)))


def _passes(found: dict[str, np.ndarray], name: str, mode: lib.Mode) -> bool:
  return all(line.passes for line in lib.compare(found, lib.known(name), mode))


def test_the_file_is_small_and_has_every_part() -> None:
  assert lib.FILE.stat().st_size <= MOST_BYTES
  for name in lib.PARTS:
    known = lib.known(name)
    inputs = {f"input_{key}" for key in lib.PARTS[name].inputs}
    assert set(known) == {lib.OUTPUT, lib.WEIGHTS, lib.NORMS} | inputs
    assert all(np.isfinite(value).all() and value.any() for value in known.values())


def test_the_hash_never_changes() -> None:
  """The file belongs to these very weights."""
  assert lib.mix(np.arange(4, dtype=np.uint32)).tolist() == [0, 1753845952, 3507691905, 1408362973]
  expected = [0.4418984651565552, -0.8519524335861206, 0.3727681636810303]
  assert lib.uniform("cifar10/x", (3,)).tolist() == expected


def test_hashed_numbers_are_uniform_and_their_own() -> None:
  one, other = lib.uniform("one", (100_000,)), lib.uniform("other", (100_000,))
  assert -1 <= one.min() < -0.999 and 0.999 < one.max() < 1
  assert abs(one.mean()) < 0.01 and one.var() == pytest.approx(1 / 3, rel=0.02)
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
  assert len(set(one.tolist()) & set(other.tolist())) < 2000


def test_a_sketch_keeps_distances() -> None:
  generator = np.random.default_rng(0)
  one, other = generator.normal(size=(2, 300, 1000))
  expected = np.linalg.norm(one - other) / np.linalg.norm(other)
  left, right = lib.sketch(one), lib.sketch(other)
  assert left.shape == (lib.SUMS,)
  assert np.linalg.norm(left - right) / np.linalg.norm(right) == pytest.approx(expected, rel=0.1)
  assert lib.sketch(one[0]).tolist() == one[0].tolist()


@pytest.mark.parametrize("place", [0, 150_000, 299_999])
def test_a_sketch_sees_every_value(place: int) -> None:
  array = np.ones(300_000)
  changed = array.copy()
  changed[place] += 1
  assert np.linalg.norm(lib.sketch(changed) - lib.sketch(array)) == 1


def test_a_cpu_reproduces_the_small_part() -> None:
  found = _found("smoke")
  assert _passes(found, "smoke", FLOAT32)
  assert all(_passes(found, "smoke", mode) for mode in lib.MODES.values())


@pytest.mark.slow
def test_a_changed_weight_is_seen() -> None:
  assert not _passes(_found("smoke", change=1.001), "smoke", FLOAT32)


@pytest.mark.slow
def test_bfloat16_passes_by_its_own_tolerance_alone() -> None:
  found = _found("smoke", "bfloat16")
  assert _passes(found, "smoke", lib.MODES["bf16"])
  assert not _passes(found, "smoke", lib.MODES["tf32"])


def test_the_cifar10_part_is_the_full_network() -> None:
  made = lib.prepare("cifar10", {"dtype": "float32"})
  assert sum(leaf.size for leaf in jax.tree.leaves(made.weights)) == 35_746_307


@pytest.mark.slow
@pytest.mark.parametrize("name", lib.names())
def test_a_cpu_reproduces_the_full_size(name: str) -> None:
  assert _passes(_found(name), name, FLOAT32)


@pytest.mark.parametrize(("name", "calls"), [("sd_block", 2), ("vae", 0)])
def test_on_a_gpu_the_parts_are_what_runs_there(name: str, calls: int) -> None:
  """Also cuDNN's attention to positions and to text; the VAE's heads are too large for it."""
  with cudnn.pretend(Gpu((9, 0), 91500)):
    made = lib.prepare(name, {"dtype": "bfloat16", "backend": "gpu"})
    text = made.run.trace(*made[1:]).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("custom_call @__cudnn$fmhaSoftmaxBackward") == calls


@pytest.mark.parametrize("what", [lib.OUTPUT, lib.WEIGHTS, lib.NORMS, "input_x"])
def test_what_is_not_finite_never_passes(what: str) -> None:
  known = lib.known("smoke")
  found = known | {what: np.where(np.arange(known[what].size) == 5, np.nan, known[what])}
  lines = {line.what: line.passes for line in lib.compare(found, known, lib.MODES["bf16"])}
  assert lines == {key: key != what for key in known}


def test_a_gradient_of_the_right_size_in_another_direction_fails() -> None:
  known = lib.known("smoke")
  found = known | {"input_x": known["input_x"][::-1]}
  lenient = lib.MODES["bf16"]._replace(gradient=10.0)
  lines = {line.what: line.passes for line in lib.compare(found, known, lenient)}
  assert not lines["input_x"] and lines[lib.OUTPUT]


def test_another_network_is_an_error() -> None:
  with pytest.raises(ValueError, match="make tests/goldens/gpu.npz again"):
    lib.compare(lib.known("smoke"), lib.known("cifar10"), FLOAT32)


def test_tolerances_grow_as_precision_falls() -> None:
  modes = [lib.MODES[name] for name in ("highest", "tf32", "bf16")]
  for finer, coarser in zip(modes, modes[1:]):
    assert finer.output < coarser.output and finer.gradient < coarser.gradient
    assert finer.cosine > coarser.cosine


@pytest.mark.parametrize(
  ("mode", "gpu", "error", "noted"),
  [
    ("tf32", Gpu((9, 0), 91500), 9e-6, True),
    ("tf32", Gpu((8, 0), None), 0.0, True),
    ("tf32", Gpu((9, 0), 91500), 1e-4, False),
    ("tf32", Gpu((9, 0), 91500), float("nan"), False),
    # Neither has TF32.
    ("tf32", Gpu((7, 5), 91500), 0.0, False),
    ("tf32", None, 0.0, False),
    ("highest", Gpu((9, 0), 91500), 0.0, False),
  ],
)
def test_a_setting_that_does_nothing_is_noted(mode, gpu, error, noted) -> None:
  errors = {lib.WEIGHTS: 0.0, lib.OUTPUT: error}
  lines = [lib.Compared(what, found, 1.0, 1.0, True) for what, found in errors.items()]
  assert bool(lib.unrounded(lines, lib.MODES[mode], gpu)) == noted


def test_the_least_error_of_tf32_is_more_than_float32_may_have() -> None:
  assert lib.MODES["tf32"].least >= lib.MODES["highest"].output
