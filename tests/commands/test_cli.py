"""Flags of every entry point: help, configs, overrides, and one line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import experiments
from experiments import _cli

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
