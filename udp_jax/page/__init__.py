"""The page for people who have never seen a terminal: `udp-jax page`."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udp_jax.errors import ConfigError, MissingDataError, UserError

if TYPE_CHECKING:
  from udp_jax.page.intake import Limits
  from udp_jax.page.server import Settings

# Flags of the command: default and help.
FLAGS = {
  "host": ("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in, without password."),
  "port": ("7860", "Port to listen on; 0 for any free one."),
  "workdir": ("runs/page", "Folder of the page's jobs; the next page there goes on with them."),
  "models": ("", "A model, or a folder of models (folders or files), to choose from."),
  "max_pictures": ("200", "Largest number of pictures in a job."),
  "max_megapixels": ("500", "Largest number of megapixels of a job's pictures together."),
  "config": ("", "--config of `protect` for every job; default: none."),
}
_ABOUT = "udp-jax page [--FLAG=VALUE ...]\n\nOpens the page for artists in the browser.\n\nflags:"
_NO_EXTRA = "the extra `page` is needed: pip install 'udp-jax[page]'"


def main(words: Sequence[str]) -> int:
  """Serves the page until Ctrl-C, for a console script; returns the exit code.

  Args:
    words: "--FLAG=VALUE" of `FLAGS`, or "--help".
  """
  if "--help" in words:
    print("\n".join([_ABOUT, *(f"  --{n:14} {text}" for n, (_, text) in FLAGS.items())]))
    return 0
  try:
    given = {}
    for word in words:
      name, equals, value = word.removeprefix("--").partition("=")
      if not (word.startswith("--") and equals and name in FLAGS):
        raise ConfigError(f"unknown argument {word!r} (flags are --FLAG=VALUE; see --help)")
      given[name] = value
    return serve(given)
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code


def serve(given: Mapping[str, str]) -> int:
  """Serves the page until Ctrl-C; returns the exit code.

  Args:
    given: values of `FLAGS`; those that are missing have their default.

  Raises:
    ConfigError: a value cannot be used, or the address is taken.
    MissingDataError: the extra `page` is not installed, or there is no model in `models`.
    OutputError: another page uses the work folder.
  """
  values = {name: given.get(name, default) for name, (default, _) in FLAGS.items()}
  port, pictures = (int(_number(values, name)) for name in ("port", "max_pictures"))
  megapixels = _number(values, "max_megapixels")
  if not (pictures >= 1 and 0 < megapixels < 1e6):
    raise ConfigError("--max_pictures and --max_megapixels must be positive")
  if not 0 <= port <= 65535:
    raise ConfigError(f"--port is {port}: it must be from 0 to 65535")
  from udp_jax.data import places
  from udp_jax.page.intake import Limits

  # Runs of the page's jobs lock their own folders in it.
  with places.use(
    named={"--models": values["models"]}, outputs={"--workdir": values["workdir"]}
  ) as used:
    if importlib.util.find_spec("gradio") is None:
      raise MissingDataError(_NO_EXTRA)
    _serve_in(used["--workdir"], values, port, Limits(pictures, megapixels))
  return 0


def _serve_in(workdir: Path, values: Mapping[str, str], port: int, limits: Limits) -> None:
  from udp_jax.page import choices, fragments
  from udp_jax.page.server import Settings

  host = values["host"]
  models = choices.models(Path(values["models"]).expanduser() if values["models"] else None)
  listener = listen(host, port)
  port = listener.getsockname()[1]
  settings = Settings(workdir, host, port, limits, models, values["config"])
  print(f"jobs: {workdir / 'jobs'}; {fragments.limit_words(limits)}", flush=True)
  if not settings.local:
    print("warning: others reach this page, and it has no password", file=sys.stderr, flush=True)
  _run(settings, listener)


def _number(values: Mapping[str, str], name: str) -> float:
  kind = float if name == "max_megapixels" else int
  try:
    return kind(values[name])
  except ValueError:
    raise ConfigError(f"--{name} is {values[name]!r}: it must be a number") from None


def listen(host: str, port: int) -> socket.socket:
  """Opens the socket before anything slow. Raises ConfigError if that is impossible."""
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
  except OSError as error:
    raise ConfigError(
      f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port or --host"
    ) from error
  return listener


def _run(settings: Settings, listener: socket.socket) -> None:
  # What Gradio serves stays in the work folder.
  os.environ["GRADIO_TEMP_DIR"] = str(settings.workdir / "served")
  import uvicorn

  from udp_jax.page import app, choices
  from udp_jax.page.jobs import Jobs
  from udp_jax.page.runner import Runner

  jobs = Jobs(settings.workdir)
  built = app.build(settings, jobs, Runner(jobs, choices.commands))
  config = uvicorn.Config(built, log_level="warning", timeout_graceful_shutdown=2, access_log=False)
  print(f"page: http://{settings.host}:{settings.port}/", flush=True)
  # The server ends in order by itself, and then sends itself the signal again.
  for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
    signal.signal(number, lambda *_, code=code: sys.exit(code))
  uvicorn.Server(config).run(sockets=[listener])
