"""Chips and slices: their numbers, names, and compilers that are missing."""

from __future__ import annotations

import importlib.util

import pytest

from launch import chips
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
  with pytest.raises(MissingDataError, match="pip install .*jax-cuda12-plugin"):
    chips.gpu_target("1x1x8", tmp_path / "h100.txtpb")
  with pytest.raises(ConfigError, match="1x1x8"):
    chips.gpu_target("8", tmp_path / "h100.txtpb")
