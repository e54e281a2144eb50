"""Several purifiers, applied one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.purifiers.base import Purifier, build


def chain(model: DiffusionModel | None, *, methods: Sequence[Mapping[str, Any]]) -> Purifier:
  """Composes purifiers.

  Pictures stay float between two methods; only a method itself may round them.

  Args:
    model: the model for the methods.
    methods: purifiers in order, each a mapping of `name` and its options, such as
      ({"name": "gaussian_noise", "std": 0.05}, {"name": "jpeg", "quality": 75}).

  Raises:
    ConfigError: there are no methods, one has no name, or `build` raises it for one of them.

  >>> method = chain(None, methods=[{"name": "gaussian_blur"}, {"name": "jpeg", "quality": 60}])
  >>> method.needs_model, method.init(jax.random.key(0))
  (False, ({}, {}))
  """
  parts = []
  for settings in methods:
    options = dict(settings)
    if "name" not in options:
      raise ConfigError(f"purifier chain: a method needs a name, got {options}")
    parts.append(build(options.pop("name"), model, options))
  if not parts:
    raise ConfigError("purifier chain needs at least one method")

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    return tuple(
      part.init(jax.random.fold_in(key, i), model_params) for i, part in enumerate(parts)
    )

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    for number, (part, own) in enumerate(zip(parts, params)):
      part_keys = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
      images = part.apply(own, part_keys, images)
    return images

  return Purifier(init, apply, needs_model=any(part.needs_model for part in parts))
