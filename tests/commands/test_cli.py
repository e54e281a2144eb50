"""Flags of every entry point: help, configs, overrides, and one line for every mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments import _cli
from udp_jax.errors import ConfigError

FOLDER = Path(experiments.__file__).parent
ENTRY_POINTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))
# The entry points that take --config, and whose configs.
TAKES_CONFIG = {
  "eudp": "eudp",
  "udp": "udp",
  "protect": "eudp",
  "train": "train",
  "train_ldm": "train_ldm",
  "benchmark": "benchmark",
}
# A painter gives it no flag; `calibrate` measures the built-in photographs.
NEEDS_NONE = {"page", "calibrate"}


def _error(done) -> str:
  """The one line on stderr."""
  assert done.stderr.startswith("error: "), done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
  assert done.stdout == ""
  return done.stderr


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_lists_flags_and_configs(name: str, entry_point) -> None:
  done = entry_point(name, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert f"python -m experiments.{name} --" in done.stdout
  places = [place / f"{name}.py" for place in (FOLDER, Path(_cli.__file__).parent)]
  source = "".join(path.read_text() for path in places if path.is_file())
  defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
  if name in TAKES_CONFIG:
    defined |= {"config", "workdir"}
    for config in _cli.config_names(TAKES_CONFIG[name]):
      assert re.search(rf"^  {config} +\S+ \S+", done.stdout, re.MULTILINE)
  if name in ("eudp", "udp"):
    defined |= {"evaluate", "progress"}
  listed = dict(re.findall(r"^  --(?:\[no\])?(\w+) +(\S.*)$", done.stdout, re.MULTILINE))
  assert defined <= set(listed)
  assert all(len(text) > 5 for text in listed.values())


@pytest.mark.parametrize("flag", ["-h", "--helpshort", "--helpfull"])
def test_other_words_for_help(flag: str, entry_point) -> None:
  done = entry_point("eudp", flag)
  assert (done.returncode, done.stderr) == (0, "")
  assert "--[no]evaluate" in done.stdout
  assert ("--verbosity" in done.stdout) == (flag == "--helpfull")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_unknown_flag_and_stray_word(name: str, entry_point) -> None:
  done = entry_point(name, "--nope=1")
  assert done.returncode == 2
  assert "Unknown command line flag 'nope'" in _error(done)
  done = entry_point(name, "stray")
  assert done.returncode == 2
  assert "unexpected argument 'stray'" in _error(done)


@pytest.mark.parametrize("name", sorted({*ENTRY_POINTS} - NEEDS_NONE))
def test_without_flags_says_what_is_needed(name: str, entry_point) -> None:
  done = entry_point(name)
  assert done.returncode == 2
  assert re.search(r"needed|give --", _error(done))


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config=nope"], "unknown config 'nope' of eudp; known: .*cifar10, .*cifar10_small, demo"),
    (["--config", "nope"], "unknown config 'nope' of eudp"),
    (["--config="], "unknown config '' of eudp"),
    (["--config"], "--config needs a name"),
    (["--config=demo_pixels:nope"], "unknown variant 'nope' of config demo_pixels; known: smoke"),
    (
      ["--config=demo_pixels", "--config.nope=1"],
      "unknown field config.nope; fields of config: .*rows",
    ),
    (
      ["--config.data.nope=1", "--config=demo_pixels"],
      "unknown field config.data.nope; fields of config.data: classes,",
    ),
    (["--config=demo_pixels", "--config.data=1"], "config.data is a group of fields: classes"),
    (["--config=demo_pixels", "--config.seed.x=1"], "config.seed is a value"),
    (["--config.seed=1"], "--config.seed=1 needs --config=NAME"),
    (
      ["--config=demo_pixels", "--config.num_rounds=abc"],
      "--config.num_rounds=abc: invalid literal",
    ),
    (["--config=demo_pixels", "--config.num_rounds=1.5"], "num_rounds"),
    (["--config=demo_pixels", "--evaluate=perhaps"], "evaluate=perhaps"),
    (["--config=demo_pixels"], "--workdir is needed"),
    (["--workdir=x"], "--config is needed"),
    (["--config=folder", "--workdir=x"], "--config.data.source is needed"),
    (["--num_processes=2"], "--num_processes needs --coordinator and --process_id too"),
    (
      ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
      "process_id is 2; with 2 processes it must be 0 to 1",
    ),
  ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], message: str, entry_point) -> None:
  done = entry_point("eudp", *words)
  assert done.returncode == 2
  assert re.search(message, _error(done))


def _parsed(words: list[str], monkeypatch: pytest.MonkeyPatch):
  """The config that words lead to, through the flags' own parser."""
  from absl import flags

  monkeypatch.setattr(_cli, "_EXPERIMENT", [])
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
    _cli.get_config("udp", "eudp")


_EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("", f"{_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir=WORK/autotune"),
    ("--a=1  --b", f"--a=1  --b {_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir=WORK/autotune"),
    (
      "--xla_gpu_per_fusion_autotune_cache_dir=/mine",
      f"--xla_gpu_per_fusion_autotune_cache_dir=/mine {_EXCLUDE}",
    ),
    (
      "--xla_gpu_exclude_nondeterministic_ops=false --xla_gpu_per_fusion_autotune_cache_dir=/mine",
      "--xla_gpu_exclude_nondeterministic_ops=false --xla_gpu_per_fusion_autotune_cache_dir=/mine",
    ),
  ],
)
def test_deterministic_adds_to_the_flags_that_are_given(
  given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("XLA_FLAGS", given)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", raising=False)
  monkeypatch.chdir(tmp_path)
  _cli._repeat_exactly("runs/one")  # A folder of the current one.
  assert os.environ["XLA_FLAGS"] == expected.replace("WORK", str(tmp_path / "runs" / "one"))
  assert os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"
  assert not (tmp_path / "runs").exists()


def test_deterministic_without_a_work_folder_keeps_what_jax_is_told(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "all")
  _cli._repeat_exactly(None)
  assert os.environ["XLA_FLAGS"].endswith(f"_autotune_cache_dir={tmp_path}/autotune")
  assert os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "all"


_STARTS = """
import os, sys
from experiments import _cli
def main(argv):
  assert "jax" not in sys.modules
  import jax
  assert float(jax.jit(lambda x: x + 1)(1.0)) == 2
  print(os.environ["XLA_FLAGS"], jax.config.jax_persistent_cache_enable_xla_caches)
_cli.workdir_flag()
_cli.run(main, several=False)
"""


@pytest.mark.parametrize("deterministic", [True, False])
def test_jax_starts_with_every_flag_that_is_set(
  deterministic: bool, tmp_path: Path, process_environment: dict[str, str]
) -> None:
  """XLA aborts at a flag that it does not know, or at half of a path with a blank."""
  words = ["--deterministic"] if deterministic else ["--nodeterministic"]
  command = [sys.executable, "-c", _STARTS, *words, f"--workdir={tmp_path / 'a run'}"]
  environment = process_environment | {"PYTHONPATH": str(FOLDER.parent)}
  environment.pop("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", None)
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  expected = f'{_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir="{tmp_path}/a run/autotune"'
  assert (expected in done.stdout) == deterministic
  assert done.stdout.endswith(" none\n") == deterministic
  assert not list(tmp_path.iterdir())  # On a CPU nothing is timed.
