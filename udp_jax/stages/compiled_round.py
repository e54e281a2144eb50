"""The compiled round of a protection, and programs that run a single time.

`CompiledRound` is the jitted, donated, sharded round that resident runs, streamed runs, the
benchmark and the ahead-of-time compiler share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from udp_jax.data.batches import Batch
from udp_jax.models.base import Params
from udp_jax.protections.base import WHOLE, Protection
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import sharding

_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Program(NamedTuple):
  """A round that is ready to run.

  Attributes:
    executable: the compiled program, which takes `arguments` last.
    arguments: arrays of the protection (`Protection.arguments`) on the devices: one or none.
  """

  executable: Any
  arguments: tuple[Any, ...]

  def __call__(
    self, key: jax.Array, state: Any, data: Batch, params: Params | None, phase: Any
  ) -> tuple[Any, Any]:
    """Runs the round, or a part of it, as `Protection.update`; the state is donated."""
    return self.executable(key, state, data, params, phase, *self.arguments)

  def as_text(self) -> str:
    """Returns the compiler's text of the program."""
    return self.executable.as_text()

  def memory_analysis(self) -> Any:
    """Returns the compiler's figures of the program's memory."""
    return self.executable.memory_analysis()


class CompiledRound(NamedTuple):
  """`Protection.update`, compiled so that each round reuses the buffers of the state.

  Attributes:
    protection: the method.
    abstract: shapes and dtypes of the state.
    shardings: pytree like the state: where each leaf lives. It is fixed, not inferred, so that a
      round accepts the state that the round before returned.
    jitted: the update; it donates the state.
    mesh: devices.
  """

  protection: Protection
  abstract: Any
  shardings: Any
  jitted: Any
  mesh: Mesh

  @classmethod
  def of(
    cls,
    protection: Protection,
    key: jax.Array,
    data: Batch,
    params: Params | None,
    mesh: Mesh,
    *,
    update: Callable[..., Any] | None = None,
  ) -> CompiledRound:
    """Decides where the state lives. Nothing is compiled or allocated yet.

    Args:
      protection: the method.
      key: root of every draw; `key`, `data` and `params` may be abstract.
      data: leaves (num_batches, B, ...).
      params: parameters of the attacked model, or None.
      mesh: devices.
      update: program in place of `protection.update`; use it through `jitted`.
    """
    abstract = jax.eval_shape(protection.init, key, data, params)
    shardings = sharding.state_shardings(abstract, data.ids.shape, mesh)
    jitted = jax.jit(update or protection.update, donate_argnums=1, out_shardings=(shardings, None))
    return cls(protection, abstract, shardings, jitted, mesh)

  @property
  def placed(self) -> Any:
    """The abstract state with its shardings, to lower the round without a concrete state."""
    return placed(self.abstract, self.shardings)

  def init(self, key: jax.Array, data: Batch, params: Params | None) -> Any:
    """Returns the state at round 0, on its devices."""
    return run_once(self.protection.init, out_shardings=self.shardings)(key, data, params)

  def lower(
    self, key: jax.Array, state: Any, data: Batch, params: Params | None, phase: Any = None
  ) -> Any:
    """Lowers the round. The phase is an argument of the program, so one program runs them all.

    So are the arrays of `Protection.arguments`, which follow the phase. UDP and EUDP thus lower to
    the same text, and jax's compilation cache answers for the second one.

    Args:
      key: root of every draw.
      state: from `init`, or the abstract one, `placed`.
      data: leaves (num_batches, B, ...).
      params: parameters of the attacked model, or None.
      phase: () int32, which part runs; None for the whole round.
    """
    phase = jnp.int32(WHOLE) if phase is None else phase
    arguments = tuple(
      placed(given, sharding.replicated(given, self.mesh)) for given in self._arguments()
    )
    return self.jitted.lower(key, state, data, params, phase, *arguments)

  def compile(self, key: jax.Array, state: Any, data: Batch, params: Params | None) -> Program:
    """Compiles the round; arguments as for `lower`."""
    executable = self.lower(key, state, data, params).compile()
    return Program(executable, mesh_lib.replicate(self._arguments(), self.mesh))

  def _arguments(self) -> tuple[Any, ...]:
    """The protection's arrays, in host memory: one pytree, or none."""
    make = self.protection.arguments
    return () if make is None else (make(),)


def placed(tree: Any, shardings: Any) -> Any:
  """Returns a pytree of `jax.ShapeDtypeStruct`s like `tree`, each with its sharding."""

  def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(place, tree, shardings)


def run_once(function: Callable, **options: Any) -> Callable:
  """`jax.jit` with hardly any optimisation, for a program that runs a single time.

  XLA's CPU backend takes longer to optimise the random initialisation of a U-Net than the U-Net's
  training step.
  """
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(function, compiler_options=_QUICK if on_cpu else None, **options)


def fetched(numbers: dict[str, jax.Array]) -> dict[str, float]:
  """Copies all numbers to the host at once; blocks until they are there."""
  return {name: float(value) for name, value in mesh_lib.to_host(numbers).items()}
