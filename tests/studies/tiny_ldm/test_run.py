"""A run of both stages: one config a folder, and pictures of every concept in figures."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.configs import latent
from udp_jax.errors import ConfigError
from udp_jax.studies.tiny_ldm import run


def test_figures_show_some_of_each_concept() -> None:
  concepts = np.array([0] * 50 + [1] * 3 + [-1] * 20)
  shown = run._some_of_each(concepts, 9, seed=0)
  assert sorted(concepts[shown].tolist()) == [-1] * 3 + [0] * 3 + [1] * 3
  assert len(set(run._some_of_each(concepts, 73, seed=0).tolist())) == 73


def test_a_folder_belongs_to_one_config(tmp_path) -> None:
  config = latent.training("test")
  run._check_config(config, tmp_path)
  config.performance.steps_per_call = 3  # Changes nothing that is learned.
  run._check_config(config, tmp_path)
  config.denoiser.train_steps = 7
  with pytest.raises(ConfigError, match=r"another config \(denoiser differ\)"):
    run._check_config(config, tmp_path)
