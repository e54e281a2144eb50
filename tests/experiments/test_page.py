"""`experiments.page` as a command: what it refuses before anything is served."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from udp_jax import page
from udp_jax.errors import ConfigError

WRONG = {
  "--port=70000": "--port is 70000",
  "--port=x": "--port is 'x'",
  "--max_pictures=0": "--max_pictures",
  "--max_megapixels=nan": "--max_megapixels",
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_flags_are_one_line(word: str, tmp_path: Path, entry_point) -> None:
  done = entry_point("page", word, f"--workdir={tmp_path / 'page'}")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert WRONG[word] in done.stderr
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", [*WRONG, "--nope=1", "port=1", "--port"])
def test_the_console_scripts_words(word: str, capsys: pytest.CaptureFixture) -> None:
  assert page.main([word]) == 2
  assert WRONG.get(word, f"unknown argument '{word}'") in capsys.readouterr().err


def test_the_console_scripts_help(capsys: pytest.CaptureFixture) -> None:
  assert page.main(["--help"]) == 0
  said = capsys.readouterr().out
  assert all(f"--{name} " in said and text in said for name, (_, text) in page.FLAGS.items())


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="Gradio is here")
def test_without_gradio_it_says_how_to_get_it(tmp_path: Path, entry_point) -> None:
  done = entry_point("page", f"--workdir={tmp_path / 'page'}")
  assert done.returncode == 2 and "pip install 'udp-jax[page]'" in done.stderr


def test_a_taken_port_is_said_at_once() -> None:
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with pytest.raises(ConfigError, match="choose another --port"):
      page.listen("127.0.0.1", taken.getsockname()[1])
