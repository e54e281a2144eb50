"""Converts `config.performance` to module options, which change speed and memory, not results.

dtype            dtype of the computation, "float32" or "bfloat16"
precision        how float32 products and convolutions of the model are computed; see below
frozen_dtype     dtype of parts that are not trained (VAE, text encoder); "" for float32.
                 "bfloat16" halves their memory, and changes nothing if dtype is the same
frozen_parts     names of those parts; add the U-Net for methods that train LoRA factors beside it.
                 "text_encoder" includes the second one of Stable Diffusion XL
conv_method      one of `ops.conv`; "" for the backend's default
attention        one of `ops.attention`; "" for the backend's default. In U-Nets with text it is for
                 long sequences to themselves, and "library" on GPUs for the others and the text too
backend          "cpu", "gpu" or "tpu", whose defaults apply; "" for this process's backend
vae_attention    attention of the VAE's one attention layer; "" for "chunked" if `attention` is
                 "flash", whose kernel does not take heads of 512 channels, else for `attention`
vae_dtype        dtype of the VAE; "" for dtype. The VAE of Stable Diffusion XL overflows in float16
                 (diffusers' force_upcast), which is no dtype here; bfloat16 has float32's range.
                 "float32" computes it as diffusers' training scripts do, at twice the memory
vae_slices       maximum number of slices of a batch that pass the VAE one by one
remat            whether to recompute each block's activations for the gradient

A backend may round the inputs of float32 products. `precision` says how far, for the model's
functions and their gradients (`precise`):

value      CPU      NVIDIA GPU                                    TPU
""         float32  TF32                                          one bfloat16 pass
"highest"  float32  float32                                       six bfloat16 passes: float32
"tf32"     float32  TF32                                          three bfloat16 passes
"bf16"     float32  products of bfloat16 inputs, summed in        one bfloat16 pass
                    float32; convolutions stay TF32, for which
                    there is no such form

"" is the backend's own default. On GPUs "tf32" is that default too, for cuBLAS, cuDNN and Triton's
kernels alike: what JAX calls "tensorfloat32" asks XLA for HIGH, which is TF32 in cuBLAS but float32
in Triton's kernels (XLA: matmul_utils.cc, dot_algorithms.cc). PyTorch's default on NVIDIA GPUs is
TF32 for convolutions, float32 for products. With dtype "bfloat16" the setting concerns only what
stays float32, such as the embedding of time. Exceptions: the Pallas kernel ("flash") computes its
gradient in the default.
JAX's own setting (`jax.default_matmul_precision`, JAX_DEFAULT_MATMUL_PRECISION) has priority, and
metrics use it: they are always measured in "highest", in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import attention, conv, linear

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The names that `jax.default_matmul_precision` has for each precision.
PRECISIONS = {"": None, "highest": "highest", "tf32": "tensorfloat32", "bf16": "BF16_BF16_F32"}
# "bf16" on TPUs: their own default. The name above asks for an algorithm, of which only GPUs have
# several.
_ONE_PASS = "bfloat16"
# "tf32" on GPUs, see above.
_TF32 = "default"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
# The functions of a model that compute with its weights.
_FUNCTIONS = (
  *("encode", "apply", "decode", "embed"),
  *("hold", "reconstruct", "apply_learned", "posterior"),
)

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def module_options(
  performance: Mapping[str, Any] | None = None, *, long: bool = False
) -> dict[str, Any]:
  """Returns the options of our networks: dtype, conv_method, attention, remat, and fused.

  Query, key and value are products of their own (not `fused`) on TPUs, and where `library` is the
  attention of a GPU: cuDNN's kernel would have to copy slices of one product, as TPUs do.

  Args:
    performance: the fields above; missing fields have their defaults.
    long: whether the network exchanges attention only over long sequences (`transformer`).

  Raises:
    ConfigError: a dtype, convolution method or attention is unknown, or needs other devices.
  """
  given = _fields(performance)
  backend = given["backend"] or jax.default_backend()
  method = given["conv_method"]
  if method and method not in conv.METHODS:
    raise ConfigError(f"unknown conv_method {method!r}; known: {', '.join(conv.METHODS)}")
  name = given["attention"] or attention.default(backend, long=long)
  return {
    "attention": _attention(name, backend),
    "dtype": _dtype(given["dtype"]),
    "conv_method": method or (conv.default_method(backend) if given["backend"] else None),
    "remat": bool(given["remat"]),
    "fused": _fused(name, backend),
  }


def transformer_options(performance: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns `module_options` for a U-Net of transformers, and its text_attention.

  On GPUs `library` also attends to short sequences and to the text, where cuDNN's kernel keeps no
  matrix of weights for the gradient.
  """
  given = _fields(performance)
  backend = given["backend"] or jax.default_backend()
  name = given["attention"] or attention.default(backend, long=True)
  options = module_options(given, long=True)
  short = options["attention"] if _takes_apart(name, backend) else None
  return options | {"text_attention": short}


def vae_options(performance: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns `module_options` for the VAE."""
  given = _fields(performance)
  backend = given["backend"] or jax.default_backend()
  name = given["attention"] or attention.default(backend, long=True)
  name = given["vae_attention"] or ("chunked" if name == "flash" else name)
  changed = {"attention": _attention(name, backend), "fused": _fused(name, backend)}
  if given["vae_dtype"]:
    changed["dtype"] = _dtype(given["vae_dtype"])
  return module_options(given) | changed


def vae_slices(performance: Mapping[str, Any] | None = None) -> int:
  """Returns vae_slices for `latent.latent_diffusion`. Raises ConfigError unless positive."""
  slices = _fields(performance)["vae_slices"]
  if not isinstance(slices, int) or slices < 1:
    raise ConfigError(f"performance.vae_slices must be a whole number from 1 on, not {slices!r}")
  return slices


def precise(model: DiffusionModel, performance: Mapping[str, Any] | None = None) -> DiffusionModel:
  """Returns the model with all functions but `init` traced under the precision of the settings.

  Raises:
    ConfigError: the precision is unknown.
  """
  made: dict[str, Any] = {}
  for name in _FUNCTIONS:
    function = getattr(model, name)
    made[name] = None if function is None else precisely(function, performance)
  return model._replace(**made)


def precisely(
  function: Callable[_Given, _Made], performance: Mapping[str, Any] | None = None
) -> Callable[_Given, _Made]:
  """Returns a function that is traced under the precision of the settings, unless JAX's own is set.

  It is `function` itself on CPUs, which have only float32, and where no precision is asked for.

  Raises:
    ConfigError: the precision is unknown.
  """
  given = _fields(performance)
  if given["precision"] not in PRECISIONS:
    known = ", ".join(name or '""' for name in PRECISIONS)
    raise ConfigError(f"unknown precision {given['precision']!r}; known: {known}")
  name, backend = PRECISIONS[given["precision"]], given["backend"] or jax.default_backend()
  if name is None or backend == "cpu":
    return function
  if backend == "tpu" and given["precision"] == "bf16":
    name = _ONE_PASS
  if backend == "gpu" and given["precision"] == "tf32":
    name = _TF32

  @wraps(function)
  def under(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
    with jax.default_matmul_precision(linear.asked_precision() or name):
      return function(*args, **kwargs)

  return under


def frozen_dtype(performance: Mapping[str, Any] | None = None) -> Any:
  """Returns the dtype from `frozen`."""
  return frozen(performance)[0]


def frozen(performance: Mapping[str, Any] | None = None) -> tuple[Any, tuple[str, ...]]:
  """Returns (dtype, parts) for `latent.cast_parts`. Raises ConfigError if either is unknown."""
  given = _fields(performance)
  parts = tuple(given["frozen_parts"])
  if PARTS[2] in parts:  # Stable Diffusion XL has two text encoders.
    parts = (*parts, PARTS[3])
  if given["vae_dtype"] == "float32":
    parts = tuple(part for part in parts if part != PARTS[1])
  if unknown := [part for part in parts if part not in PARTS]:
    known = ", ".join(PARTS)
    raise ConfigError(f"performance.frozen_parts: unknown part {unknown[0]!r}; known: {known}")
  return _dtype(given["frozen_dtype"] or "float32"), parts


def _fields(performance: Mapping[str, Any] | None) -> dict[str, Any]:
  given = dict(performance.items()) if performance is not None else {}
  defaults = {"dtype": "float32", "conv_method": "", "attention": "", "remat": False}
  defaults |= {"backend": "", "precision": ""}
  defaults |= {"vae_attention": "", "vae_dtype": "", "vae_slices": 1, "frozen_dtype": ""}
  return {**defaults, "frozen_parts": ("vae", "text_encoder"), **given}


def _dtype(name: str) -> Any:
  if name not in DTYPES:
    raise ConfigError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
  return DTYPES[name]


def _takes_apart(name: str, backend: str) -> bool:
  """Returns whether the attention of this name may run as cuDNN's kernel."""
  return name == "library" and backend == "gpu"


def _fused(name: str, backend: str) -> bool:
  return backend != "tpu" and not _takes_apart(name, backend)


def _attention(name: str, backend: str) -> attention.AttentionFn:
  if name not in attention.FUNCTIONS:
    known = ", ".join(attention.FUNCTIONS)
    raise ConfigError(f"unknown attention {name!r}; known: {known}")
  if name == "flash" and backend != "tpu":
    raise ConfigError("attention 'flash' runs on TPUs only; 'chunked' saves memory elsewhere")
  if name == "dot_product" and backend != jax.default_backend():
    return partial(attention.dot_product_attention, wide=backend == "cpu")
  return attention.FUNCTIONS[name]
