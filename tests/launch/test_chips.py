"""Chips and slices: their numbers, names, and compilers that are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import SimpleNamespace

import pytest

from launch import chips, gpus
from udp_jax.errors import ConfigError, MissingDataError


def test_chips_have_the_vendor_s_numbers():
  assert {name: (chip.peak_flops, chip.hbm_gib) for name, chip in chips.TPUS.items()} == {
    "v4": (275e12, 32),
    "v5e": (197e12, 16),
    "v5p": (459e12, 95),
    "v6e": (918e12, 32),
  }


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4", "v5e:4x", "v5e-16", ""])
def test_topology_names(name):
  with pytest.raises(ConfigError, match="KIND:AxB"):
    chips.parse_tpu(name)


def test_a_compiler_that_is_not_installed(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match=r'libtpu.*pip install "jax\[tpu\]"') as error:
    chips.tpu_target("v5e:4x4")
  assert error.value.exit_code == 2
  with pytest.raises(MissingDataError) as error:
    chips.gpu_target("1x1x8", tmp_path / "h100.txtpb")
  version = importlib.metadata.version("jax")
  for words in (
    f"pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} nvidia-nvvm "
    "nvidia-cuda-nvcc (CUDA 13, whose programs run from driver 580 on)",
    f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} "
    "(CUDA 12, whose programs run from driver 525 on)",
  ):
    assert words in str(error.value)


@pytest.mark.parametrize(
  ("name", "given", "message"),
  [
    ("8", True, "1x1x8"),
    ("h200", False, "KIND of h100, a100, l40s, rtx4090, b200"),
    ("h100:8x", False, "h100:GPUS"),
    ("1x1x8", False, "needs --target_config=FILE"),
    ("h100", True, "describes another GPU than --topology=h100"),
  ],
)
def test_gpu_names(name, given, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    chips.gpu_target(name, tmp_path / "h100.txtpb" if given else None)


@pytest.fixture
def asked(monkeypatch):
  """What is asked of jax, which is taken to have the compiler and to make two devices."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
  found = []

  def topology(name, **options):
    found.append(options)
    return SimpleNamespace(devices=["one", "two"])

  monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", topology)
  return found


@pytest.mark.parametrize("installed", ["jax_cuda12_plugin", "jax_cuda13_plugin"])
def test_either_plugin_compiles_for_gpus(monkeypatch, tmp_path, installed, asked):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == installed else None)
  config = tmp_path / "h100.txtpb"
  config.write_text("gpu_device_info {\n  device_memory_size: 85899345920\n}\n")
  target = chips.gpu_target("1x1x2", config)
  assert target.platform == "cuda" and target.num_chips == 2 and target.hbm_gib == 60
  assert target.name == "gpu:1x1x2" and target.peak_flops is None and target.reach is None
  assert asked == [{"platform": "cuda", "topology": "1x1x2", "target_config": config.read_text()}]


def test_a_gpu_by_name(asked, monkeypatch):
  """Its memory is the part that jax takes."""
  target = chips.gpu_target("h100:2")
  card = gpus.CARDS["h100"]
  assert asked == [
    {"platform": "cuda", "topology": "1x1x2", "target_config": gpus.target_text(card)}
  ]
  assert (target.name, target.peak_flops, target.reach) == ("h100:2", 989e12, card.reach)
  assert target.gpu == ((9, 0), 91500)
  assert target.hbm_gib == pytest.approx(0.75 * 79.14, rel=1e-3)
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
  assert chips.gpu_target("h100").hbm_gib == pytest.approx(0.9 * 79.14, rel=1e-3)
