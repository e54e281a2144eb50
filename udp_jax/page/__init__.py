"""The page for people who have never seen a terminal: `udp-jax page`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udp_jax.errors import ConfigError, MissingDataError, UserError

if TYPE_CHECKING:
  from udp_jax.page.server import Settings

_ABOUT = """\
Opens a page in the browser: drop pictures, choose a model and a strength, look at before and
after, download the protected files. Only this machine reaches it unless --host says otherwise, and
whoever reaches it may use it: there is no password. Jobs are kept in WORKDIR/jobs and go on after
a reload, a crash or a restart of the page. Needs the extra `page`: pip install 'udp-jax[page]'."""


def _parser() -> argparse.ArgumentParser:
  from udp_jax.page.intake import Limits

  most = Limits()
  parser = argparse.ArgumentParser(
    prog="page", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every machine.")
  add("--port", type=int, default=7860, help="Port to listen on; 0 for any free one.")
  add("--workdir", type=Path, default=Path("runs/page"), help="Folder of the page's jobs.")
  add("--models", type=Path, help="A model folder, or a folder of them, to choose from.")
  add("--max_pictures", type=int, default=most.pictures, help="Pictures in a job.")
  add("--max_megapixels", type=float, default=most.megapixels, help="Of a job's pictures together.")
  add("--config", default="", help="Config of every job's `protect`, as there.")
  return parser


def main(words: Sequence[str]) -> int:
  """Serves the page until Ctrl-C; returns the exit code, those of the other commands.

  Args:
    words: the command line after the program's name.
  """
  try:
    return _serve(_parser().parse_args(list(words)))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code


def _serve(asked: argparse.Namespace) -> int:
  if asked.max_pictures < 1 or not asked.max_megapixels > 0:
    raise ConfigError("--max_pictures and --max_megapixels must be positive")
  if not 0 <= asked.port <= 65535:
    raise ConfigError(f"--port is {asked.port}: it must be from 0 to 65535")
  if importlib.util.find_spec("gradio") is None:
    raise MissingDataError("the page needs the extra `page`: pip install 'udp-jax[page]'")
  from udp_jax.data import places
  from udp_jax.page import choices, fragments
  from udp_jax.page.intake import Limits
  from udp_jax.runtime import locks

  workdir = places.resolve(asked.workdir)
  lock = locks.acquire(workdir)
  try:
    models = choices.models(asked.models)
    limits = Limits(asked.max_pictures, asked.max_megapixels)
    listener = _listen(asked.host, asked.port)
    port = listener.getsockname()[1]
    from udp_jax.page.server import Settings

    settings = Settings(workdir, asked.host, port, limits, models, asked.config)
    print(f"page: http://{asked.host}:{port}/", flush=True)
    print(f"jobs: {workdir / 'jobs'}; {fragments.limit_words(limits)}", flush=True)
    if not settings.local:
      print("warning: others reach this page, and it has no password", file=sys.stderr, flush=True)
    _run(settings, listener)
    return 0
  finally:
    if lock is not None:
      locks.release(lock)


def _listen(host: str, port: int) -> socket.socket:
  """Opens the socket before anything slow. Raises ConfigError if that is impossible."""
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
  except OSError as error:
    raise ConfigError(
      f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port or --host"
    ) from error
  return listener


def _run(settings: Settings, listener: socket.socket) -> None:
  # Uploads and what Gradio serves stay in the work folder.
  os.environ["GRADIO_TEMP_DIR"] = str(settings.workdir / "served")
  import uvicorn

  from udp_jax.page import app, choices
  from udp_jax.page.jobs import Jobs
  from udp_jax.page.runner import Runner

  jobs = Jobs(settings.workdir)
  built = app.build(settings, jobs, Runner(jobs, choices.commands))
  config = uvicorn.Config(built, log_level="warning", timeout_graceful_shutdown=2, access_log=False)
  # The server ends in order by itself, and then sends itself the signal again.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
  try:
    uvicorn.Server(config).run(sockets=[listener])
  except KeyboardInterrupt:
    pass
