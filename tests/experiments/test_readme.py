"""README.md, experiments/README.md: flags are parsed as printed, commands run at `:smoke` size."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import _cli
from udp_jax.commands import shared_flags

ROOT = Path(__file__).resolve().parents[2]
README = "\n".join((ROOT / p / "README.md").read_text("utf-8") for p in ("", "experiments"))
PROGRAMS = ("make", "python", "bash", "hf", "pip", "udp-jax")
# Commands that the test does not run, and why; `PROGRAM TARGET` stands for the command.
NOT_RUN = {
  "make demo": "minutes, and a virtual environment of its own; CI runs it",
  "make docs": "CI runs it",
  "make test": "it is what runs this",
  "make test_slow": "it is what runs this",
  "make test_long": "it is what runs this",
  "python udp_jax.data.metadata": "prints a table; tests/data/test_metadata.py reads it",
  "make bench": "half an hour against PyTorch in an environment of its own",
  "make parity": "needs PyTorch in an environment of its own",
  "python launch.aot": "needs libtpu, which is no dependency; tests/launch compile with it",
  "pip install": "needs the network; tests/test_packaging.py installs the wheel",
  "python .github/strength.py": "minutes; its picture is in the repository",
  "udp-jax protect": "tests/test_packaging.py runs it from the wheel",
  "udp-jax verify": "tests/test_packaging.py runs it from the wheel",
  "udp-jax models": "tests/test_packaging.py runs it from the wheel",
  "udp-jax page": "a server: tests/page drives it in a browser",
  "bash launch/local.sh": "several processes: tests/experiments/test_multiprocess.py runs it",
  "bash launch/gpu_run.sh": "needs a GPU: tests/launch/test_gpu_run.py runs it at smoke size",
  "bash launch/tpu_pod.sh": "cloud machines: tests/launch/test_tpu_pod.py runs it with a stand-in",
}
# A name in the table without flags says that the entry point is there.
ABBREVIATED = "..."
PLACEHOLDERS = {"PICTURES", "PROTECTED", "SD_FOLDER", "FOLDER", "FILE"}


def _commands() -> list[str]:
  """Commands of the fenced blocks (not the Python one) and of inline code, in their order."""
  # Comments in blocks of commands are no commands.
  places = []
  for found in re.finditer(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
    if found[1] != "python":
      places += [(found.start(), line.partition("  #")[0]) for line in found[2].splitlines()]
  prose = re.sub(r"^```.*?^```", lambda m: " " * len(m[0]), README, flags=re.MULTILINE | re.DOTALL)
  places += [(found.start(), found[1]) for found in re.finditer(r"`([^`\n]+)`", prose)]
  # Stable: lines of a block stay in their order.
  words = [text.strip() for _, text in sorted(places, key=lambda place: place[0])]
  return list(dict.fromkeys(w for w in words if w.split(" ")[0] in PROGRAMS and " " in w))


COMMANDS = _commands()


def _kind(command: str) -> str:
  """`PROGRAM TARGET` of a command, as `NOT_RUN` names it."""
  words = shlex.split(command)
  return f"{words[0]} {words[2] if words[1] == '-m' else words[1]}"


def _is_entry_point(command: str) -> bool:
  return command.startswith("python -m experiments.") or command.startswith("python -m launch.")


ENTRY_POINTS = [c for c in COMMANDS if _is_entry_point(c)]


def test_readme_has_the_commands_that_this_reads() -> None:
  kinds = {_kind(command) for command in COMMANDS}
  assert {"make demo", "python experiments.protect", "python launch.aot"} <= kinds
  assert len(COMMANDS) > 15
  modules = {f"experiments.{p.stem}" for p in (ROOT / "experiments").glob("[a-z]*.py")}
  assert modules == {_kind(c).split()[1] for c in ENTRY_POINTS if "experiments." in c}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_run_or_has_a_reason(command: str) -> None:
  kind = _kind(command)
  assert kind in NOT_RUN or kind.startswith("python experiments."), (
    f"README has a new kind of command, {kind!r}: run it here, or say why not in NOT_RUN"
  )
  program, target = kind.split()
  if program == "make":
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
  elif program == "bash":
    assert (ROOT / target).is_file()


def test_no_reason_is_left_over() -> None:
  kinds = {_kind(command) for command in COMMANDS} | {
    "make parity",
    "make test_slow",
    "make test_long",
  }
  assert set(NOT_RUN) <= kinds


def _flags(command: str) -> list[str]:
  """The flags of an entry point's command; `--config=...` stands for one of its configs."""
  return [
    "--config=demo" if word == f"--config={ABBREVIATED}" else word
    for word in shlex.split(command)[3:]
  ]


def _inner(command: str) -> str:
  """A command that another one starts: `bash launch/local.sh 2 -- COMMAND`."""
  return command.rpartition(" -- ")[2]


@pytest.mark.parametrize("command", [c for c in COMMANDS if _is_entry_point(_inner(c))])
def test_flags_are_parsed_as_printed(command: str, load_entry_point) -> None:
  command = _inner(command)
  loaded = load_entry_point(_kind(command).split()[1])
  assert loaded.parse(*_flags(command)) == ["program"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("udp-jax protect ")])
def test_flags_of_the_console_script_are_parsed(command: str, load_entry_point) -> None:
  loaded = load_entry_point("experiments.protect")
  assert loaded.parse(*shlex.split(command)[2:]) == ["program", "PICTURES"]


def test_flags_and_fields_in_the_text_are_there(load_entry_point) -> None:
  flags = set(re.findall(r"`(--\w[\w.]*)", README)) - {"--config", "--help"}
  assert {"--radius_255", "--spare_flat", "--model"} <= flags
  known: set[str] = set()
  from absl import flags as absl_flags

  for name in ("protect", "page", "impress", "sample", "train", "purify"):
    load_entry_point(f"experiments.{name}")
    shared_flags.deterministic_flag()  # As `cli.run`, which the loader leaves out.
    known |= {f"--{flag}" for flag in absl_flags.FLAGS}
  for flag in flags:
    if flag.startswith("--config."):
      configs = [_cli.get_config("eudp", "demo_pixels"), _cli.get_config("impress", "demo")]
      assert any(_has(config, flag.removeprefix("--config.")) for config in configs), flag
    else:
      assert flag in known, flag


def _has(config, field: str) -> bool:
  for part in field.split("."):
    if not hasattr(config, "keys") or part not in config:
      return False
    config = config[part]
  return True


def _as_smoke(command: str, places: dict[str, Path], runs: Path) -> list[str]:
  """A command's flags with folders of the test and the `:smoke` variant of its config."""
  words = []
  for word in _flags(command):
    name, equals, value = word.partition("=")
    head, slash, rest = value.partition("/")
    if head.removesuffix(".work") in PLACEHOLDERS:
      stem = head.removesuffix(".work")
      value = f"{places[stem]}{head.removeprefix(stem)}{slash}{rest}"
    elif head == "runs":
      value = str(runs / rest)
    elif name == "--config" and ":" not in value:
      value = f"{value}:smoke"
    words.append(f"{name}{equals}{value}")
  if _kind(command) == "python experiments.protect" and "--config" not in command:
    words.append("--config=folder:smoke")
  if _kind(command).split()[1] in ("experiments.eudp", "experiments.udp", "experiments.impress"):
    words.append("--noprogress")
  return words


@pytest.mark.readme
def test_every_command_runs(
  load_entry_point, tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
  """In README's order: some read what others wrote. Those without flags are names, not commands."""
  pictures = tmp_path / "pictures"
  pictures.mkdir()
  for i in range(2):
    noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(pictures / f"{i}.png")
  places = {"PICTURES": pictures, "PROTECTED": tmp_path / "protected"}
  places |= {"SD_FOLDER": tiny_pipeline_folder}
  monkeypatch.chdir(tmp_path)
  ran = []
  for command in ENTRY_POINTS:
    words = _as_smoke(command, places, tmp_path / "runs")
    if _kind(command) in NOT_RUN or not _flags(command):
      continue
    loaded = load_entry_point(_kind(command).split()[1])
    rest = loaded.parse(*words)
    # Two commands of README have one --workdir: another config is another run.
    for word in words:
      if word.startswith("--workdir="):
        shutil.rmtree(word.partition("=")[2], ignore_errors=True)
    assert not loaded.main(rest), f"{command}: {capsys.readouterr()}"
    ran.append(_kind(command).split(".")[1])
  assert {"protect", "verify", "eudp", "udp", "impress"} <= set(ran)


def _python_block(holds: str) -> str:
  """The block of Python that holds these words."""
  blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
  (block,) = [block for block in blocks if holds in block]
  return block


def _with(block: str, *changes: tuple[str, str]) -> str:
  """A block with smaller sizes, each of which must be there to replace."""
  for printed, small in changes:
    assert block.count(printed) == 1, printed
    block = block.replace(printed, small)
  return block


@pytest.mark.readme
def test_the_block_of_calls_runs(tmp_path: Path, monkeypatch, capsys) -> None:
  """As printed, with one round and few steps where 20 rounds and 64 steps are the defaults."""
  (tmp_path / "photos").mkdir()
  for seed, path in enumerate((tmp_path / "picture.png", tmp_path / "photos" / "a.png")):
    clean = np.random.default_rng(seed).integers(0, 256, (64, 60, 3), np.uint8)
    Image.fromarray(clean).save(path)
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  strengths = ('strength="gentle"', 'strength="medium"')
  block = _python_block("import udp_jax\n")
  exec(_with(block, *((s, f"{s}, num_rounds=1, train_steps=2") for s in strengths)), names)
  change = np.abs(np.asarray(names["protected"]).astype(int) - np.asarray(names["picture"]))
  assert 0 < change.max() <= 4 and names["protected"].size == (60, 64)
  assert names["purified"].tobytes() != names["protected"].tobytes()
  assert capsys.readouterr().out == "True\nTrue\n"
  assert (tmp_path / "photos-protected" / "a.png").is_file()


@pytest.mark.readme
def test_the_block_of_a_run_runs() -> None:
  """As printed, with a smaller model, fewer pictures and fewer rounds."""
  smaller = "sample_size=8, block_out_channels=(8,), down_block_types=('DownBlock2D',), "
  smaller += "up_block_types=('UpBlock2D',), layers_per_block=1, norm_num_groups=4"
  block = _with(
    _python_block("protections.run("),
    ("image_size=32, limit=256", "image_size=8, limit=4"),
    ("UNet2DConfig())", f"UNet2DConfig({smaller}))"),
    ('"step_size_255": 2}', '"step_size_255": 2, "train_steps": 1}'),
    ("num_rounds=20", "num_rounds=1"),
    (", 128)", ", 4)"),
  )
  names: dict = {}
  exec(block, names)
  clean = names["clean"]
  change = np.abs(np.asarray(names["images"]).reshape(clean.shape) * 255 - clean)
  assert 1 < change.max() <= 16 + 1e-3


def test_the_block_of_ops_runs() -> None:
  """As printed: a step of two levels up the loss, which rises by it."""
  block = _python_block("from udp_jax.ops import projections")
  assert re.findall(r"udp_jax[.\w]*", block) == ["udp_jax.ops"]
  names: dict = {}
  exec(block, names)
  assert np.allclose(np.unique(np.abs(names["delta"])), 2 / 255)
  assert names["loss"](names["delta"]) > names["loss"](0 * names["delta"])
