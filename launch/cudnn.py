"""Lowers cuDNN's attention for a GPU that this machine lacks.

JAX asks the GPU of its own process whether cuDNN's fused attention runs, and so does
`ops.attention`. When a program is lowered for another machine, the answers must be the target's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
from jax._src.cudnn import fused_attention_stablehlo

from udp_jax.ops import attention


@contextmanager
def pretend(gpu: attention.Gpu | None) -> Iterator[None]:
  """Within the context, attention is traced and lowered as on `gpu`; None changes nothing.

  Nothing can be tried on a GPU that is not there, so what `cudnn_refusal` lets pass is taken to
  work. What JAX traced before is forgotten at both ends, as it was traced for another GPU.

  Raises:
    RuntimeError: the installed JAX asks for its GPU in another way than the tested versions.
  """
  if gpu is None:
    yield
    return

  def version(word: str) -> tuple[int, ...]:
    return tuple(int(part) for part in word.split("."))

  answers: dict[str, Any] = {
    "cuda_versions": gpu.cudnn_version
    and SimpleNamespace(cudnn_get_version=lambda: gpu.cudnn_version),
    "check_compute_capability": lambda least: gpu.capability >= version(least),
    "is_cuda_compute_capability_equal": lambda one: gpu.capability == version(one),
  }
  missing = [name for name in answers if not hasattr(fused_attention_stablehlo, name)]
  if missing:
    raise RuntimeError(
      f"jax {jax.__version__} has no {', '.join(missing)} in jax._src.cudnn: attention cannot be "
      "lowered for a GPU that is not there; use a tested version of jax"
    )
  jax.clear_caches()
  try:
    with (
      _replaced(fused_attention_stablehlo, answers),
      _replaced(attention, {"local_gpu": lambda: gpu, "_cudnn_works": lambda *_, **__: True}),
    ):
      yield
  finally:
    jax.clear_caches()


@contextmanager
def _replaced(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
  before = {name: getattr(module, name) for name in values}
  for name, value in values.items():
    setattr(module, name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      setattr(module, name, value)
