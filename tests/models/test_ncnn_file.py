"""Models in ncnn's format: what is read of them, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.models.restorers import rrdbnet_files
from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import ncnn_file

TEXT = """7767517
3 3
Input            in    0 1 data
Convolution      c1    1 1 data a 0=2 1=3 4=1 5=1 6=54 9=2 -23310=1,2.000000e-01
Convolution      c2    1 1 a out 0=1 1=1 5=0 6=2
"""
KERNEL = np.arange(54, dtype=np.float16) / 8
BIAS = np.array([0.25, -2.0], np.float32)
LAST = np.array([1.5, -0.1], np.float32)
WEIGHTS = b"".join(
  [(0x01306B47).to_bytes(4, "little"), KERNEL.tobytes(), BIAS.tobytes(), bytes(4), LAST.tobytes()]
)


def test_layers_and_weights():
  start, first, second = ncnn_file.parse(TEXT, WEIGHTS)
  assert start == ("Input", "in", (), ("data",), {}, None, None)
  assert first[:5] == (
    *("Convolution", "c1", ("data",), ("a",)),
    {0: 2, 1: 3, 4: 1, 5: 1, 6: 54, 9: 2, 10: (0.2,)},
  )
  np.testing.assert_array_equal(first.kernel, KERNEL.reshape(2, 3, 3, 3))
  np.testing.assert_array_equal(first.bias, BIAS)
  assert first.kernel.dtype == np.float32
  np.testing.assert_array_equal(second.kernel, LAST.reshape(1, 2, 1, 1))
  np.testing.assert_array_equal(second.bias, [0.0])


def test_odd_halves_are_filled_up():
  text = TEXT.replace("0=2 1=3 4=1 5=1 6=54", "0=1 1=3 4=1 5=1 6=9").replace("6=2", "6=1")
  tag = WEIGHTS[:4]
  data = tag + KERNEL[:9].tobytes() + bytes(2) + BIAS[:1].tobytes() + bytes(4) + LAST[:1].tobytes()
  layers = ncnn_file.parse(text, data)
  np.testing.assert_array_equal(layers[1].kernel.ravel(), KERNEL[:9])
  np.testing.assert_array_equal(layers[2].kernel.ravel(), LAST[:1])


@pytest.mark.parametrize(
  ("text", "weights", "message"),
  [
    (TEXT.replace("7767517", "7767518"), WEIGHTS, "not a text file of an ncnn model"),
    (TEXT, WEIGHTS + b"more", "have 136 bytes, of which the layers use 132"),
    (TEXT, WEIGHTS[:-4], "not a readable model of ncnn"),
    (TEXT, b"\x01" + WEIGHTS[1:], "c1 is stored in a way that is not read"),
    (TEXT.replace("Convolution      c2", "InnerProduct     c2"), WEIGHTS, "c2 is a InnerProduct"),
    (TEXT.replace("3 3", "many"), WEIGHTS, "not a readable model of ncnn"),
    (TEXT.replace("0=1 1=1 5=0 6=2", "1=1"), WEIGHTS, "not a readable model of ncnn"),
  ],
)
def test_files_that_are_refused(tmp_path, text, weights, message):
  contents = {"model.param": text.encode(), "model.bin": weights}
  digests = [hashlib.sha256(content).hexdigest() for content in contents.values()]
  for name, content in contents.items():
    (tmp_path / name).write_bytes(content)
  with pytest.raises(BadDataError, match=message):
    ncnn_file.read(
      *(tmp_path / name for name in contents), param_sha256=digests[0], binary_sha256=digests[1]
    )


def test_files_that_are_not_the_ones_meant(tmp_path):
  text, weights = rrdbnet_files()
  (tmp_path / "a.param").write_text(text)
  (tmp_path / "a.bin").write_bytes(weights)
  places = tmp_path / "a.param", tmp_path / "a.bin"
  digests = [hashlib.sha256(place.read_bytes()).hexdigest() for place in places]
  assert len(ncnn_file.read(*places, param_sha256=digests[0], binary_sha256=digests[1])) > 30
  for wrong in (("0" * 64, digests[1]), (digests[0], "0" * 64)):
    with pytest.raises(BadDataError, match="sha256"):
      ncnn_file.read(*places, param_sha256=wrong[0], binary_sha256=wrong[1])
  with pytest.raises(MissingDataError):
    ncnn_file.read(tmp_path / "b", places[1], param_sha256="", binary_sha256="")
