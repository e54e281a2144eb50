"""Convolutions and their gradients against `lax.conv_general_dilated` with JAX's own derivative."""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from udp_jax.ops import conv
from udp_jax.ops.conv import conv2d


class Case(NamedTuple):
  images: tuple[int, int, int, int]
  kernel: tuple[int, int, int]
  stride: int = 1
  padding: int | tuple[tuple[int, int], tuple[int, int]] = 1


CASES = {
  "winograd_odd": Case((2, 17, 18, 16), (3, 3, 17)),
  "winograd_wide": Case((1, 16, 23, 19), (3, 3, 16)),
  "winograd_whole_tiles": Case((2, 16, 20, 16), (3, 3, 16)),
  "smallest_map": Case((3, 4, 3, 16), (3, 3, 18)),
  "small_map": Case((2, 5, 7, 3), (3, 3, 4)),
  "large_kernel": Case((1, 8, 9, 320), (3, 3, 416)),
  "no_padding": Case((2, 6, 5, 3), (3, 3, 4), padding=0),
  "uneven_padding": Case((2, 6, 5, 3), (3, 3, 4), padding=((0, 2), (1, 0))),
  "5x5": Case((2, 9, 6, 3), (5, 5, 4), padding=2),
  "3x1": Case((2, 6, 5, 3), (3, 1, 4), padding=((1, 1), (0, 0))),
  "1x1": Case((2, 5, 3, 3), (1, 1, 4), padding=0),
  "1x1_padded": Case((2, 5, 3, 3), (1, 1, 4)),
  "downsample": Case((2, 8, 6, 3), (3, 3, 4), 2, ((0, 1), (0, 1))),
  "downsample_odd": Case((2, 7, 9, 3), (3, 3, 4), 2, ((0, 1), (0, 1))),
  "strided_padded": Case((2, 8, 7, 3), (3, 3, 4), 2),
  "strided_2x2": Case((2, 9, 6, 3), (2, 2, 4), 2, 0),
  "strided_1x1": Case((2, 7, 6, 3), (1, 1, 4), 2, 0),
  "stride_3_5x5": Case((2, 11, 10, 3), (5, 5, 4), 3, 2),
}
WINOGRAD = [name for name in CASES if name.startswith("winograd")]
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def reference(x, kernel, *, stride: int, padding):
  """XLA's convolution, in a few words of our own."""
  if isinstance(padding, int):
    padding = [(padding, padding)] * 2
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)


def functions(case: Case, methods=conv.METHODS) -> dict:
  """The reference and every method, as functions of (x, kernel)."""
  options = {"stride": case.stride, "padding": case.padding}
  ours = {method: partial(conv2d, method=method, **options) for method in methods}
  return {"reference": partial(reference, **options)} | ours


def draw(case: Case, dtype=np.float64):
  """Images, a kernel of gain about 1, and a cotangent of the output."""
  generator = np.random.default_rng(sum(case.images))
  kh, kw, features = case.kernel
  kernel = (kh, kw, case.images[3], features)
  out = jax.eval_shape(
    functions(case)["reference"],
    *(jax.ShapeDtypeStruct(shape, np.float32) for shape in (case.images, kernel)),
  )
  x, cotangent = generator.normal(size=case.images), generator.normal(size=out.shape)
  weights = generator.normal(size=kernel) / np.sqrt(np.prod(kernel[:3]))
  return x.astype(dtype), weights.astype(dtype), cotangent.astype(dtype)


def with_gradients(function, x, kernel, cotangent):
  out, pullback = jax.vjp(function, x, kernel)
  return out, *pullback(cotangent)


def relative_error(actual, expected) -> float:
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_in_double_precision(name):
  case = CASES[name]
  with jax.enable_x64(True):

    @jax.jit
    def run(*values):
      return {k: with_gradients(f, *values) for k, f in functions(case).items()}

    results = run(*draw(case))
  expected = results.pop("reference")
  assert expected[0].dtype == np.float64
  for method, actual in results.items():
    for what, got, want in zip(("output", "d_images", "d_kernel"), actual, expected, strict=True):
      assert relative_error(got, want) < 1e-12, (method, what)


@pytest.mark.parametrize("name", ["winograd_odd", "downsample_odd", "5x5", "1x1"])
def test_single_precision_alone_and_inside_a_scan(name):
  case = CASES[name]
  values = draw(case, np.float32)
  methods = functions(case, ("direct", "winograd"))
  exact = methods.pop("reference")

  @jax.jit
  def run(x, kernel, cotangent):
    def in_scan(function):
      def body(carry, scale):
        return carry, with_gradients(function, x, carry * scale, cotangent)

      return lax.scan(body, kernel, jnp.ones(2))[1]

    alone = {k: with_gradients(f, x, kernel, cotangent) for k, f in methods.items()}
    return alone, {k: in_scan(f) for k, f in methods.items()}

  with jax.enable_x64(True):
    expected = jax.jit(partial(with_gradients, exact))(*(v.astype(np.float64) for v in values))
  alone, scanned = run(*values)
  for method in methods:
    for got, inside, want in zip(alone[method], scanned[method], expected, strict=True):
      assert got.dtype == inside.dtype == np.float32
      assert relative_error(got, want) < 2e-5, method
      assert relative_error(inside[0], got) < 2e-6, method
      assert relative_error(inside[1], got) < 2e-6, method


def test_numerical_derivatives_agree():
  with jax.enable_x64(True):
    for name in ("winograd_odd", "downsample_odd"):
      x, kernel, _ = draw(CASES[name])
      function = jax.jit(functions(CASES[name])["winograd"])
      check_grads(function, (x, kernel), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def convolutions(jaxpr, inside: bool = False):
  """All convolutions within scans of a jaxpr, however deep."""
  for equation in jaxpr.eqns:
    if inside and equation.primitive.name == "conv_general_dilated":
      yield equation.params
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(part, "jaxpr", part)
        if hasattr(inner, "eqns"):
          yield from convolutions(inner, inside or equation.primitive.name == "scan")


def scanned_gradient_convolutions(case: Case, method: str) -> list[dict]:
  values = [v.astype(np.float32) for v in draw(case)]
  function = functions(case)[method]

  def scanned(x, kernel, cotangent):
    def body(carry, _):
      return carry, with_gradients(function, x, carry, cotangent)

    return lax.scan(body, kernel, None, length=2)

  return list(convolutions(jax.make_jaxpr(scanned)(*values).jaxpr))


def is_forward_shaped(params: dict) -> bool:
  """What XLA's CPU backend runs fast inside a `while`: the layout of an inference pass."""
  dilation = (params["lhs_dilation"], params["rhs_dilation"])
  groups = (params["feature_group_count"], params["batch_group_count"])
  plain = params["window_strides"] == (1, 1) and dilation == ((1, 1), (1, 1)) and groups == (1, 1)
  return plain and params["dimension_numbers"] == NHWC


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["direct", "winograd"])
def test_gradients_inside_a_scan_keep_off_the_slow_path(name, method):
  found = scanned_gradient_convolutions(CASES[name], method)
  case = CASES[name]
  winning = method == "winograd" and name in (*WINOGRAD, "smallest_map", "large_kernel")
  products_only = name == "1x1" or case.stride > 1 or winning
  assert len(found) == (0 if products_only else 3)
  assert all(is_forward_shaped(params) for params in found)


@pytest.mark.parametrize("name", ["small_map", "downsample"])
def test_the_guard_sees_the_slow_path_of_plain_autodiff(name):
  found = scanned_gradient_convolutions(CASES[name], "xla")
  assert len(found) == 3
  assert not all(is_forward_shaped(params) for params in found)


@pytest.mark.parametrize("name", ["winograd_odd", "downsample", "1x1"])
def test_vmap_is_a_loop(name):
  case = CASES[name]
  stacked = [np.stack([v, 2 * v[::-1]]) for v in draw(case, np.float32)]
  function = partial(with_gradients, functions(case)["winograd"])
  mapped = jax.jit(jax.vmap(function))(*stacked)
  compiled = jax.jit(function)
  for i in range(2):
    for got, want in zip(mapped, compiled(*(v[i] for v in stacked)), strict=True):
      assert relative_error(got[i], want) < 1e-5


@pytest.mark.parametrize("name", ["winograd_odd", "downsample", "1x1", "small_map"])
def test_bfloat16_stays_bfloat16(name):
  case = CASES[name]
  values = [jnp.asarray(v, jnp.bfloat16) for v in draw(case)]
  run = jax.jit(lambda *v: {k: with_gradients(f, *v) for k, f in functions(case).items()})
  exact = jax.jit(partial(with_gradients, functions(case)["reference"]))(
    *(v.astype(jnp.float32) for v in values)
  )
  for method, results in run(*values).items():
    for got, want in zip(results, exact, strict=True):
      assert got.dtype == jnp.bfloat16
      assert relative_error(got, want) < 5e-3, method


@pytest.mark.parametrize("name", WINOGRAD)
def test_held_filters_change_nothing_but_the_kernels_gradient(name):
  case = CASES[name]
  x, kernel, cotangent = draw(case, np.float32)
  held = conv.hold(kernel, x.shape, method="winograd")
  assert held is not None

  def pair(x, kernel, held):
    return conv2d(x, kernel, method="winograd", held=held)

  @jax.jit
  def run(*values):
    return [with_gradients(partial(pair, held=given), *values) for given in (None, held)]

  plain, (out, dx, dkernel) = run(x, kernel, cotangent)
  np.testing.assert_allclose(out, plain[0], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(dx, plain[1], rtol=1e-6, atol=1e-6)
  assert not np.any(dkernel)


def test_nothing_is_held_where_nothing_is_gained():
  kernel = jnp.zeros((3, 3, 16, 16))
  large = jax.ShapeDtypeStruct((3, 3, 512, 512), np.float32)
  assert jax.eval_shape(lambda k: conv.hold(k, (1, 64, 64, 512), method="winograd"), large) is None
  for shape, options in (
    ((1, 16, 16, 16), {"method": "direct"}),
    ((1, 16, 16, 16), {"method": "xla"}),
    ((1, 16, 16, 16), {"method": "winograd", "stride": 2}),
    ((1, 16, 16, 16), {"method": "winograd", "padding": 0}),
    ((1, 4, 4, 16), {"method": "winograd"}),
  ):
    assert conv.hold(kernel, shape, **options) is None


@pytest.mark.parametrize(
  ("method", "height", "width"),
  [("xla", 9, 8), ("direct", 9, 8), ("winograd", 9, 8)]
  # Borders meet on the smallest maps.
  + [("xla", 1, 1), ("xla", 1, 4), ("xla", 2, 3), ("xla", 4, 4)],
)
def test_convolving_a_doubled_image(method, height, width):
  x, kernel, _ = draw(Case((2, height, width, 16), (3, 3, 17)))
  bias = np.linspace(-1, 1, 17)
  with jax.enable_x64(True):

    def doubled(x, kernel):
      return conv.upsampled_conv2d(x, kernel, bias, method=method)

    def plain(x, kernel):
      return (
        reference(x.repeat(2, 1).repeat(2, 2), kernel, stride=1, padding=1) + bias[None, None, None]
      )

    cotangent = np.random.default_rng(0).normal(size=(2, 2 * height, 2 * width, 17))
    run = jax.jit(lambda *values: [with_gradients(f, *values) for f in (doubled, plain)])
    for actual, expected in zip(*run(x, kernel, cotangent), strict=True):
      assert relative_error(actual, expected) < 1e-12


def test_a_doubled_image_is_a_transposed_convolution_for_the_compiler():
  """XLA recognises one by its dilated map and reversed kernel, for any backend."""
  x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 3, 2), jnp.float32)
  text = jax.jit(partial(conv.upsampled_conv2d, method="xla")).lower(x, kernel).as_text()
  (reversed_kernel,) = re.findall(r"(%\w+) = stablehlo\.reverse .*dims = \[0, 1\].*4x4x3x2", text)
  (convolution,) = [line for line in text.splitlines() if "stablehlo.convolution" in line]
  assert re.search(rf"\(%arg0, {reversed_kernel}\)", convolution)
  assert "lhs_dilate = [2, 2]" in convolution


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_gradient_of_a_doubled_image_reverses_kernels_alone(platform):
  """XLA writes a reversed map to memory; the gradient's two convolutions need none."""
  x, g = (jax.ShapeDtypeStruct((2, n, n, c), jnp.bfloat16) for n, c in ((8, 3), (16, 5)))
  kernel = jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.bfloat16)
  doubled = partial(conv.upsampled_conv2d, method="xla")
  traced = jax.jit(lambda x, kernel, g: jax.vjp(doubled, x, kernel)[1](g)).trace(x, kernel, g)
  lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
  reversed_ = [line for line in lines if "stablehlo.reverse" in line]
  assert {re.search(r"tensor<(\d+x\d+)x", line)[1] for line in reversed_} <= {"3x3", "4x4"}
  convolutions = [line for line in lines if "stablehlo.convolution" in line]
  # Of the kernel: a map of the cotangent with the features, spread out, as its kernel.
  (of_kernel,) = [line for line in convolutions if "rhs_dilate = [2, 2]" in line]
  assert of_kernel.rstrip().endswith("tensor<4x4x3x5xbf16>")


def test_bias_and_default_method():
  x, kernel, _ = draw(CASES["small_map"], np.float32)
  bias = np.arange(4, dtype=np.float32)
  with_bias, without = jax.jit(lambda: (conv2d(x, kernel, bias), conv2d(x, kernel)))()
  np.testing.assert_allclose(with_bias, without + bias[None, None, None], rtol=1e-5, atol=1e-5)
  assert conv.default_method("cpu") == "winograd"
  assert conv.default_method("tpu") == conv.default_method("gpu") == "xla"


def test_errors():
  x, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
  with pytest.raises(ValueError, match="unknown convolution method 'fft'; known: xla, direct"):
    conv2d(x, kernel, method="fft")
  with pytest.raises(ValueError, match=r"got \(1, 4, 4, 3\), \(3, 3, 2, 2\)"):
    conv2d(x, kernel[:, :, :2])
  with pytest.raises(ValueError, match="conv2d needs"):
    conv2d(x[0], kernel)


@pytest.mark.parametrize(
  ("side", "dtype", "products"),
  # Winograd's makes one product of 36 for each point of a tile, patches one in all.
  [(16, np.float32, "patches"), (32, np.float32, "tiles"), (32, jnp.bfloat16, "patches")],
)
def test_large_kernels_are_multiplied_as_they_are_on_small_maps(side, dtype, products):
  x = jax.ShapeDtypeStruct((1, side, side, 640), dtype)
  kernel = jax.ShapeDtypeStruct((3, 3, 640, 640), dtype)
  text = str(jax.make_jaxpr(partial(conv2d, method="winograd"))(x, kernel))
  assert ("36,640,640" in text) == (products == "tiles")
