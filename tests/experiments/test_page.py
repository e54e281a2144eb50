"""`experiments.page` as a command: what it refuses, before anything is served."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from udp_jax import page

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ("words", "code", "said"),
  [
    (["--port=70000"], 2, "--port"),
    (["--max_pictures=0"], 2, "--max_pictures"),
    (["--max_megapixels=nan"], 2, "--max_megapixels"),
    (["--models=/no/such/folder"], 2, "no such"),
  ],
)
def test_wrong_flags_are_one_line(
  words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
  spec = importlib.util.find_spec("gradio")
  assert page.main([*words, f"--workdir={tmp_path / 'page'}"]) == code
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  if spec is None and "models" in words[0]:
    said = "udp-jax[page]"
  assert said in error
  assert not (tmp_path / "page" / "jobs").exists()


def test_a_taken_port_is_said_at_once() -> None:
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with pytest.raises(page.ConfigError, match="choose another --port"):
      page._listen("127.0.0.1", taken.getsockname()[1])


def test_help_needs_neither_gradio_nor_jax() -> None:
  code = "import sys; sys.argv[1:] = ['--help']; from udp_jax import page\n"
  code += "try: page.main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
  code += "assert not {'gradio', 'jax'} & set(sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "--max_megapixels" in done.stdout and "no password" in done.stdout
