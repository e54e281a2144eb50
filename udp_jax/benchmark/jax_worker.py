"""Our contestant: the library's compiled round, as production runs it, behind a pipe.

One program is compiled: `Protection.update` with donated state and a traced `phase`, which the
entry points dispatch too. Its phases are the min step, the max step and the round. Sections of the
benchmark that race nobody are handlers of the same process (`sections`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax import parallel, placement, protections, provenance, rounds, training
from udp_jax.benchmark import flops, impress, models, serve
from udp_jax.models.base import DiffusionModel
from udp_jax.models.performance import DTYPES
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE, Protection

PHASES = {"min": TRAIN, "max": PERTURB, "round": WHOLE, "joint": WHOLE}
# As the library's studies: budget and step in 8-bit levels.
_GAME = {"radius_255": 16.0, "step_size_255": 2.0, "start": "sign"}


class Problem(NamedTuple):
  """A round that is ready to be compiled."""

  protection: Protection
  model: DiffusionModel
  key: jax.Array
  data: training.Batch
  params: Any
  state: Any
  shardings: Any


def build(
  unet: dict[str, Any],
  performance: dict[str, Any],
  *,
  batch: int,
  vae: dict[str, Any] | None = None,
  image_size: int = 0,
  prompt_length: int = 0,
  num_batches: int = 1,
  train_steps: int = 1,
  perturb_steps: int = 1,
  joint: bool = False,
  spread: bool = False,
) -> Problem:
  """UDP on random pictures with random weights of a trained network's size.

  Args:
    unet: see `models.build`.
    performance: `config.performance`.
    batch: pictures of a batch.
    vae: see `models.build`.
    image_size: of a latent model.
    prompt_length: tokens of a latent model's prompts, which come as embeddings.
    num_batches: of the data set.
    train_steps: of a round.
    perturb_steps: of a round.
    joint: one backward pass for weights and delta.
    spread: over all devices; otherwise everything is on the first.
  """
  model = models.build(unet, performance, vae=vae, image_size=image_size)
  options = {**_GAME, "train_steps": train_steps, "perturb_steps": perturb_steps}
  if joint:
    options["joint_gradients"] = True
  protection = protections.build("udp", model, options)
  generator = np.random.default_rng(0)
  count = num_batches * batch
  images = generator.integers(0, 256, (count, *model.image_shape), np.uint8)
  cond = None
  if vae is not None:
    width = unet["cross_attention_dim"]
    cond = generator.standard_normal((count, prompt_length, width), np.float32)
  mesh = parallel.make_mesh(None if spread else jax.devices()[:1])
  data = parallel.place_batches(training.make_batches(images, batch, cond=cond), mesh)
  key = jax.random.key(0)
  params = models.random_params(model, generator)
  params = parallel.place(params, placement.param_shardings(params, mesh))
  # As `rounds.resident` does it.
  abstract = jax.eval_shape(protection.init, key, data, params)
  shardings = placement.state_shardings(abstract, data, mesh)
  state = rounds.run_once(protection.init, out_shardings=shardings)(key, data, params)
  # A model on pixels is the surrogate itself; of a latent one, what is not trained stays outside.
  frozen = None if vae is None else params
  return Problem(protection, model, key, data, frozen, state, shardings)


def compile_round(problem: Problem) -> Any:
  """The executable that `rounds.resident` dispatches."""
  return lower_round(problem).compile()


def lower_round(problem: Problem) -> Any:
  """The same, before the compiler's work."""
  shardings = (problem.shardings, None)
  update = jax.jit(problem.protection.update, donate_argnums=1, out_shardings=shardings)
  return update.lower(problem.key, problem.state, problem.data, problem.params, jnp.int32(WHOLE))


class Contestant:
  """Handlers of a race. Times are of one step: a round of K train and K perturb steps counts K."""

  def prepare(self, works: list[str], **spec: Any) -> dict[str, Any]:
    """Builds, compiles and runs each of `works` once; see `build` for `spec`."""
    self._problem = build(**spec)
    self._state = self._problem.state
    self._problem = self._problem._replace(state=None)
    self._steps = spec.get("train_steps", 1)
    started = time.perf_counter()
    self._update = compile_round(self._problem._replace(state=self._state))
    compiled = time.perf_counter()
    for work in works:
      self._step(work)
    warm = time.perf_counter()
    return {
      "compile_s": compiled - started,
      "warmup_s": warm - compiled,
      "compile_peak_rss_mib": serve.peak_rss_mib(),
      "tflop": self._tflop(),
    }

  def run(self, work: str) -> dict[str, Any]:
    """One timed run."""
    started = time.perf_counter()
    self._step(work)
    return {"seconds": (time.perf_counter() - started) / self._steps}

  def memory(self, work: str) -> dict[str, Any]:
    """One untimed run and its peak memory."""
    return serve.measured(lambda: self._step(work))

  def scratch_mib(self) -> float:
    """What the compiled program takes beside its arguments and results, in MiB."""
    return self._update.memory_analysis().temp_size_in_bytes / 2**20

  def _step(self, work: str) -> None:
    problem, phase = self._problem, jnp.int32(PHASES[work])
    result = self._update(problem.key, self._state, problem.data, problem.params, phase)
    self._state, info = jax.block_until_ready(result)
    # What the host loop fetches; also a guard: a race of NaNs would say nothing.
    loss, train_loss = np.asarray(info.loss), np.asarray(info.train_loss)
    seen = [train_loss] * (work != "max") + [loss] * (work in ("max", "round"))
    if not all(np.isfinite(values).all() for values in seen):
      raise FloatingPointError(f"the loss of {work} is not finite")

  def _tflop(self) -> dict[str, float | None]:
    """TFLOP of one step by kind of work, from the compiled program."""
    cost = flops.count(self._update.as_text())
    # The two phases of the round, train first: perturb needs its weights.
    parts = cost.parts if len(cost.parts) == 2 else (None, None)
    found = {"round": cost.total, "joint": cost.total, "min": parts[0], "max": parts[1]}
    scale = 1e12 * self._steps
    return {work: value / scale if value is not None else None for work, value in found.items()}


def info() -> dict[str, Any]:
  """Hardware, versions, threads."""
  hardware, versions = provenance.hardware(), provenance.versions()
  return {"hardware": hardware, "versions": versions, "threads": serve.cores()}


def _block(function: Any, *arguments: Any) -> None:
  jax.block_until_ready(function(*arguments))


def matmul(size: int) -> dict[str, Any]:
  """Peak GFLOP/s of a matrix product, by dtype."""
  rates = {}
  product = jax.jit(lambda a: a @ a)
  for name, dtype in DTYPES.items():
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    rates[name] = serve.matmul_gflops(partial(_block, product, a), size)
  return {"gflops": rates}


def main() -> None:
  """Serves until the pipe closes."""
  from udp_jax.benchmark import primitives, sections

  serve.serve(
    {
      "info": info,
      "matmul": matmul,
      **serve.racing({"impress": impress.Contestant}, Contestant),
      "primitive": primitives.measure,
      "cost": sections.cost,
      "host": sections.host_overhead,
      "scaling": sections.scaling,
      "compile": sections.compile_time,
    }
  )


if __name__ == "__main__":
  main()
