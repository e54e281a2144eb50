"""GPUs by name: their numbers, their description for XLA, and names that are none."""

from __future__ import annotations

import re

import pytest

from launch import gpus
from udp_jax.errors import ConfigError
from udp_jax.ops.attention import Gpu


@pytest.mark.parametrize(
  ("name", "topology"),
  [("h100", "1x1x1"), ("a100:8", "1x1x8"), ("b200:2x8", "1x2x8"), ("rtx4090:1x1", "1x1x1")],
)
def test_names(name, topology):
  assert gpus.parse(name) == (gpus.CARDS[name.partition(":")[0]], topology)


@pytest.mark.parametrize("name", ["h100:", "h100:0", "h100:8x", "h100:x8", "h100:1x2x3", "h100:-1"])
def test_names_with_no_number_of_gpus(name):
  with pytest.raises(ConfigError, match="h100:HOSTSxGPUS"):
    gpus.parse(name)


@pytest.mark.parametrize("name", ["v100", "H100", "1x1x8", ""])
def test_names_of_no_card(name):
  assert gpus.parse(name) is None


def test_cards_have_the_vendor_s_numbers():
  """Dense bfloat16 TFLOP/s, GB/s, compute capability, and GB of memory as the data sheets say."""
  assert {
    name: (card.peak_flops / 1e12, card.bandwidth / 1e9, card.capability, round(card.memory / 1e9))
    for name, card in gpus.CARDS.items()
  } == {
    "h100": (989, 3352.32, (9, 0), 85),
    "a100": (312, 2039, (8, 0), 85),
    "l40s": (362, 864, (8, 9), 48),
    "rtx4090": (165, 1008, (8, 9), 25),
    "b200": (2250, 7672, (10, 0), 192),
  }


@pytest.mark.parametrize("name", gpus.CARDS)
def test_no_card_reaches_its_peaks(name):
  card = gpus.CARDS[name]
  assert 0.6 < card.reach.matmul / card.peak_flops < 0.9
  assert 0.8 < card.reach.copy / card.bandwidth < 0.9
  # The peak is what the units do at the clock: a power of two of multiply-adds of a dense
  # product in each multiprocessor and cycle.
  each_cycle = card.peak_flops / (card.cores * card.clock * 1e9)
  assert any(0.9 < each_cycle / (2 * macs) < 1.1 for macs in (256, 512, 1024, 2048, 4096))


@pytest.mark.parametrize("name", gpus.CARDS)
def test_the_description_says_what_the_card_says(name):
  """Every section closes, every field is there once, and what is read back is the same."""
  card = gpus.CARDS[name]
  text = gpus.target_text(card)
  depth = 0
  for line in text.splitlines():
    assert line.startswith("  " * depth) or line.strip() == "}"
    depth += line.count("{") - line.count("}")
    assert depth >= 0
    assert re.fullmatch(r'\s*(\w+ \{|\}|\w+: ([\d.]+|"[^"{}]*"))', line)
  assert depth == 0
  fields = re.findall(r"(\w+):", text.partition("cuda_compute_capability")[0])
  assert len(fields) == len(set(fields))
  found = gpus.described(text)
  assert found.gpu == Gpu(card.capability, card.cudnn)
  assert found.memory == card.memory
  assert found.reach is not None and found.reach.copy == pytest.approx(0.84 * card.bandwidth)
  assert found.reach.matmul == float("inf")


def test_a_description_that_leaves_out_zeros():
  """As XLA writes it itself."""
  text = "gpu_device_info {\n  cuda_compute_capability {\n    major: 9\n  }\n}\n"
  assert gpus.described(text) == (Gpu((9, 0), None), None, None)
  text += "dnn_version_info {\n  major: 9\n  minor: 15\n}\n"
  assert gpus.described(text).gpu == Gpu((9, 0), 91500)


def test_the_part_of_the_memory_that_jax_takes(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  assert gpus.memory_fraction() == 0.75
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".92")
  assert gpus.memory_fraction() == 0.92
  for wrong in ("0", "-1", "1.5", "most", "nan"):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", wrong)
    with pytest.raises(ConfigError, match="XLA_PYTHON_CLIENT_MEM_FRACTION"):
      gpus.memory_fraction()
