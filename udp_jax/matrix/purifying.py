"""Purified pictures of every row, by each purifier; "none" gives them back as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from udp_jax import lookup, parallel, purifiers, study
from udp_jax.data import manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.matrix import plan as plan_lib
from udp_jax.matrix.plan import NONE, Cell
from udp_jax.matrix.subject import Subject
from udp_jax.metrics.batches import over_pictures
from udp_jax.ops.image import quantise, to_float
from udp_jax.randomness import example_keys, stream

FOLDER = "pictures"


class PurifiedCells:
  """Purified pictures of any row, by one purifier, compiled once."""

  def __init__(self, config: Any, name: str, subject: Subject, pictures: ImageSet):
    """Makes the purifier.

    Raises:
      ConfigError: an unknown purifier, or a missing or unusable option.
    """
    self._config, self._name, self._names = config, name, pictures.names
    self._ids = np.arange(len(pictures.images), dtype=np.int32)
    if name == NONE:
      return
    self._options = plan_lib.settings(config, "purifiers", name)
