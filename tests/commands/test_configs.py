"""Overrides of configs reach the config; configs of other experiments are unknown."""

from __future__ import annotations

import pytest

from experiments import _cli
from udp_jax.commands import configs
from udp_jax.errors import ConfigError


def _parsed(words: list[str], monkeypatch: pytest.MonkeyPatch):
  """The config that words lead to, through the flags' own parser."""
  from absl import flags

  monkeypatch.setattr(configs, "EXPERIMENT", [])
  monkeypatch.setattr(_cli, "EXPERIMENT", configs.EXPERIMENT)
  monkeypatch.setattr(_cli.flags, "FLAGS", flags.FlagValues())
  holder = _cli.define_config("eudp")
  monkeypatch.setattr("sys.argv", ["program", *words])
  _cli._parse(["program", *words])
  return holder.value


def test_overrides_reach_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
  config = _parsed(
    [
      "--config.rows=('clean', 'eudp')",
      "--config",
      "demo_pixels:smoke",
      "--config.threat.seeds=(0,1)",
      "--config.protections.eudp.a=0.25",
      "--config.data.source=some/folder",
      "--config.data.strict=true",
      "--config.data.holdout=6",
    ],
    monkeypatch,
  )
  assert config.rows == ("clean", "eudp")
  assert config.threat.seeds == (0, 1)
  assert config.protections.eudp.a == 0.25
  assert config.data.source == "some/folder"
  assert config.data.strict is True
  assert config.data.holdout == 6
  assert config.data.image_size == 16  # Of the variant.
  assert _parsed(["--config=folder"], monkeypatch).data.image_size == 32
  with pytest.raises(AttributeError):
    config.nope = 1


def test_rows_may_be_a_single_name(monkeypatch: pytest.MonkeyPatch) -> None:
  assert _parsed(["--config=demo_pixels", "--config.rows=clean"], monkeypatch).rows == ("clean",)


def test_configs_of_another_experiment_are_unknown() -> None:
  with pytest.raises(ConfigError, match="known: cifar10, cifar10_small, demo, demo_pixels, folder"):
    configs.get_config("udp", "eudp")
