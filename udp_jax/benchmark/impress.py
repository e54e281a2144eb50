"""Our contestant in the purification race: IMPRESS on a batch, several steps in one scan."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import numpy as np

from udp_jax import purifiers
from udp_jax.benchmark import flops, models, serve
from udp_jax.models import perceptual
from udp_jax.models.perceptual import PerceptualDistance

# The network of LPIPS; its weights are random here, like the autoencoder's.
_NETWORK = "vgg"


class Contestant:
  """Handlers of a race. Times are for one Adam step of the whole batch."""

  def prepare(
    self,
    works: list[str],
    *,
    unet: dict[str, Any],
    vae: dict[str, Any],
    image_size: int,
    performance: dict[str, Any],
    batch: int,
    num_steps: int,
  ) -> dict[str, Any]:
    """Builds, compiles and runs once; the arguments are those of `models.build`.

    One run takes `num_steps` steps; the only work is "impress".
    """
    (work,) = works
    generator = np.random.default_rng(0)
    model = models.build(unet, performance, vae=vae, image_size=image_size)
    options = {"num_steps": num_steps, "perceptual": random_lpips(generator)}
    # PyTorch's contestant has the published epsilon.
    self._purifier = purifiers.build("impress", model, options | {"scale_epsilon": False})
    model_params = jax.device_put(models.random_params(model, generator))
    self._params = self._purifier.init(jax.random.key(0), model_params)
    self._images = jax.device_put(generator.random((batch, *model.image_shape), np.float32))
    self._keys = purifiers.picture_keys(jax.random.key(0), np.arange(batch))
    self._num_steps = num_steps
    started = time.perf_counter()
    jitted = jax.jit(self._purifier.apply)
    self._apply = jitted.lower(self._params, self._keys, self._images).compile()
    compiled = time.perf_counter()
    self.run(work)
    return {
      "compile_s": compiled - started,
      "warmup_s": time.perf_counter() - compiled,
      "compile_peak_rss_mib": serve.peak_rss_mib(),
      "tflop": {work: flops.count(self._apply.as_text() or "").total / 1e12 / num_steps},
    }

  def run(self, work: str) -> dict[str, Any]:
    """Runs once, timed."""
    del work  # There is only one work.
    started = time.perf_counter()
    purified = np.asarray(self._apply(self._params, self._keys, self._images))
    seconds = (time.perf_counter() - started) / self._num_steps
    if not np.isfinite(purified).all():
      raise FloatingPointError("the purified pictures are not finite")
    return {"seconds": seconds}

  def memory(self, work: str) -> dict[str, Any]:
    """Runs once, untimed, and returns the peak memory."""
    return serve.measured(lambda: self.run(work))


def random_lpips(generator: np.random.Generator) -> PerceptualDistance:
  """LPIPS on VGG16 with random weights: its cost is real, its values mean nothing."""
  layers = perceptual.trunk(_NETWORK)

  def draw(shape: tuple[int, ...]) -> np.ndarray:
    fan_in = int(np.prod(shape[1:]))
    scale = np.sqrt(2 / fan_in) if len(shape) > 1 else 0.1
    # Heads are never negative.
    values = generator.standard_normal(shape, np.float32) * np.float32(scale)
    return np.abs(values) if shape[0] == 1 else values

  tensors = {name: draw(shape) for name, shape in perceptual.tensor_shapes(layers).items()}
  params = perceptual.params_from_tensors(tensors, layers)
  return PerceptualDistance(
    name=f"lpips_{_NETWORK}",
    label="LPIPS",
    params=params,
    apply=partial(perceptual.distance, layers=layers),
    min_size=16,
    revision="random weights",
    hold=partial(perceptual.held, layers=layers),
  )
