"""`udp-jax`: its screen, words without flags, outputs beside inputs, and its one-line errors."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.commands import main as program
from udp_jax.data import marks

NOISE = ("--method=random_noise", "--noprogress")


@pytest.fixture
def udp_jax(run_module):
  return lambda *words: run_module("udp_jax.commands.main", *words)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
  folder = tmp_path / "my photos"
  folder.mkdir()
  pixels = np.random.default_rng(0).integers(60, 200, (20, 24, 3), np.uint8)
  Image.fromarray(pixels).save(folder / "a.png")
  return folder


def test_its_screen_fits_a_terminal(capsys, monkeypatch) -> None:
  for words, code in (([], 2), (["--help"], 0), (["help"], 0)):
    monkeypatch.setattr(sys, "argv", ["udp-jax", *words])
    with pytest.raises(SystemExit) as ended:
      program.main()
    said = capsys.readouterr().out
    assert ended.value.code == code
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 100
    assert all(f"udp-jax {name} " in said for name in (*program.COMMANDS, program.PAGE))


def test_a_command_that_is_not_there(capsys, monkeypatch) -> None:
  monkeypatch.setattr(sys, "argv", ["udp-jax", "protekt"])
  with pytest.raises(SystemExit) as ended:
    program.main()
  said = capsys.readouterr().err
  assert ended.value.code == 2 and said.count("\n") == 1
  assert said.startswith("error: unknown command 'protekt'; known: protect, verify, purify, models")


@pytest.mark.parametrize("name", program.COMMANDS)
def test_help_shows_what_people_need_first(name: str, udp_jax) -> None:
  done = udp_jax(name, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  assert lines[0].startswith(f"udp-jax {name} ") and "python -m" not in done.stdout
  assert len(lines) <= 40 and max(map(len, lines)) <= 100
  listed = [line.split()[0] for line in lines if line.startswith("  --")]
  wanted = program.COMMANDS[name].first
  assert [flag.replace("[no]", "") for flag in listed[:-1]] == [f"--{flag}" for flag in wanted]
  every = udp_jax(name, "--helpfull")
  assert every.returncode == 0 and every.stdout.startswith(lines[0])
  assert "--[no]deterministic" in every.stdout


def test_folders_are_protected_checked_and_purified(pictures: Path, udp_jax) -> None:
  done = udp_jax("protect", str(pictures), *NOISE, "--strength=gentle")
  assert done.returncode == 0, done.stderr
  output = pictures.with_name("my photos-protected")
  made = marks.read_manifest(output)
  assert made is not None and made["radius_255"] == 4 and made["worst"]["max_abs_255"] == 4
  assert made["config"]["step_size_255"] == 0.5
  assert "check the budget: udp-jax verify --clean=" in done.stdout
  done = udp_jax("verify", str(output))
  assert done.returncode == 0 and "OK: 1 files keep the budget (budget 4 levels" in done.stdout
  assert udp_jax("verify", str(output), str(pictures), "--radius_255=3").returncode == 1
  done = udp_jax("purify", str(output), "--method=jpeg", "--noprogress")
  assert done.returncode == 0, done.stderr
  assert (pictures.with_name("my photos-protected-purified") / "a.png").is_file()
  named = str(pictures.with_name("named"))
  assert udp_jax("protect", str(pictures), named, *NOISE).returncode == 0
  assert (pictures.with_name("named") / "a.png").is_file()


def test_mistakes_are_one_line(pictures: Path, udp_jax) -> None:
  folder = str(pictures)
  for words, message in (
    (("protect",), "--input and --output are needed"),
    (("protect", folder), "eudp protects against a model: give --model=tiny_ldm"),
    (("protect", f"{folder}/a.png"), "a.png is a file: give the folder that it is in"),
    (("purify", f"{folder}s"), f"no folder {folder}s is here"),
    (("protect", folder, "--input=other"), "stands for --input, which is given too"),
    (("protect", folder, "out", "more"), "unexpected argument 'more'"),
    (("protect", folder, *NOISE, "--strength=weak"), "--strength is 'weak': it must be gentle"),
    (
      ("protect", folder, *NOISE, "--strength=gentle", "--radius_255=4"),
      "give --strength or --radius_255, not both",
    ),
    (("protect", folder, "--config=nope"), "unknown config 'nope' of eudp; known: folder"),
    (("verify",), "--clean, --protected and --radius_255 are all needed"),
    (("models", folder), "is no model"),
  ):
    done = udp_jax(*words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
  assert [path.name for path in pictures.parent.iterdir()] == ["my photos"]


def test_the_page_is_called_with_the_words_after_it(monkeypatch) -> None:
  given = []
  page = types.SimpleNamespace(main=given.append)
  monkeypatch.setitem(sys.modules, "udp_jax.page", page)
  monkeypatch.setattr(sys, "argv", ["udp-jax", "page", "--port=1"])
  with pytest.raises(SystemExit) as ended:
    program.main()
  assert ended.value.code == 0 and given == [["--port=1"]]


def test_without_its_extra_the_page_says_how_to_get_it(monkeypatch, capsys) -> None:
  monkeypatch.setitem(sys.modules, "udp_jax.page", None)
  monkeypatch.setattr(sys, "argv", ["udp-jax", "page"])
  with pytest.raises(SystemExit) as ended:
    program.main()
  assert ended.value.code == 2
  assert "error: the page needs the extra `page`: pip install" in capsys.readouterr().err
