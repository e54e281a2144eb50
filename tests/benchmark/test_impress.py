"""The race of purification: random weights of LPIPS, and the guards of a run."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from udp_jax.benchmark import impress
from udp_jax.models import perceptual


def test_random_lpips_has_the_published_shapes_and_no_negative_heads() -> None:
  distance = impress.random_lpips(np.random.default_rng(0))
  layers = perceptual.trunk("vgg")
  sizes = [int(np.prod(s)) for s in perceptual.tensor_shapes(layers).values()]
  assert sum(leaf.size for leaf in jax.tree.leaves(distance.params)) == sum(sizes)
  # VGG16's thirteen convolutions and five heads of LPIPS.
  assert sum(sizes) == 14_714_688 + 64 + 128 + 256 + 512 + 512
  heads = [np.asarray(leaf) for name, leaf in distance.params.items() if "net" not in name]
  assert [head.shape for head in heads] == [(64,), (128,), (256,), (512,), (512,)]
  assert min(head.min() for head in heads) >= 0 and min(head.max() for head in heads) > 0


def test_seconds_are_those_of_a_step_and_nans_are_no_race() -> None:
  contestant = impress.Contestant()
  contestant._params = contestant._keys = None
  contestant._images, contestant._num_steps = np.ones((1, 2, 2, 3)), 1000
  contestant._apply = lambda params, keys, images: images
  assert 0 < contestant.run("impress")["seconds"] < 1e-3
  assert contestant.memory("impress")["peak_rss_mib"] > 0
  contestant._apply = lambda params, keys, images: images * np.nan
  with pytest.raises(FloatingPointError, match="the purified pictures are not finite"):
    contestant.run("impress")
