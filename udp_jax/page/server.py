"""The page's HTTP server: uploads of our own around Gradio, and headers that keep it to itself.

Gradio's own uploads would lose folders and change names, and would not count what comes in.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware

from udp_jax.data import naming
from udp_jax.errors import ConfigError, UserError
from udp_jax.page import intake, jobs
from udp_jax.page.intake import Limits
from udp_jax.page.jobs import Jobs
from udp_jax.page.runner import Runner

# Another site's page cannot send this without asking, and is never allowed to.
_HEADER = "x-udp-page"
_MOST_DRAFTS = 50
# Nothing comes from, or goes to, another host. Gradio's code needs the two "unsafe" words.
_POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' "
  "blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
  "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
  "frame-ancestors 'none'"
)
_HEADERS = {
  "Content-Security-Policy": _POLICY,
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}


class Settings(NamedTuple):
  """How the page runs.

  Attributes:
    workdir: folder of the page's jobs.
    host: address to listen on.
    port: port to listen on.
    limits: of a job.
    models: labels by model.
    config: --config of every job's `protect`, or "".
  """

  workdir: Path
  host: str
  port: int
  limits: Limits
  models: dict[str, str]
  config: str = ""

  @property
  def local(self) -> bool:
    """Whether only this machine reaches the page."""
    if self.host == "localhost":
      return True
    try:
      return ipaddress.ip_address(self.host).is_loopback
    except ValueError:
      return False


class _Headers:
  """Adds headers to every response."""

  def __init__(self, app: Callable[..., Awaitable[None]]):
    self._app = app

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    async def with_headers(message: Any) -> None:
      if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
          headers[name] = value
      await send(message)

    await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def make(settings: Settings, all_jobs: Jobs, runner: Runner) -> FastAPI:
  """Returns the server without Gradio's page: uploads, headers, and the runner's start and end."""

  @contextlib.asynccontextmanager
  async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    del app
    runner.start()
    yield
    await anyio.to_thread.run_sync(runner.close)

  app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
  if settings.local:  # A name that another site points at this machine is refused.
    allowed = ["127.0.0.1", "localhost", "[::1]", settings.host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed)
  app.add_middleware(_Headers)
  one_at_a_time = threading.Lock()

  @app.exception_handler(UserError)
  async def say(request: Request, error: UserError) -> PlainTextResponse:
    del request
    return PlainTextResponse(f"error: {naming.printable(str(error))}", status_code=400)

  @app.post("/drafts")
  def create(request: Request) -> PlainTextResponse:
    _check_sender(request)
    with one_at_a_time:
      drafts = [job for job in all_jobs.all() if job.state().status == jobs.DRAFT]
      if len(drafts) >= _MOST_DRAFTS:
        raise ConfigError("too many uploads have not been started; start one, or wait a day")
      return PlainTextResponse(all_jobs.create().id)

  @app.put("/drafts/{name}")
  async def upload(name: str, request: Request) -> PlainTextResponse:
    _check_sender(request)
    job = all_jobs.get(name)
    if job.state().status != jobs.DRAFT:
      raise ConfigError("this job has been started already; reload the page for a new one")
    path = unquote(request.headers.get("x-path", ""), errors="strict")
    intake.place_of(path)  # Before anything is read.
    content = await _received(request, job.folder, settings.limits)

    def add() -> int:
      with one_at_a_time:
        return intake.add(job.pictures, path, content, settings.limits)

    return PlainTextResponse(str(await anyio.to_thread.run_sync(add)))

  return app


def _check_sender(request: Request) -> None:
  if request.headers.get(_HEADER) != "1":
    raise ConfigError("uploads come from the page itself")


async def _received(request: Request, folder: Path, limits: Limits) -> Path:
  """Writes a request's body to a temporary file, as long as it keeps the limit."""
  handle, name = tempfile.mkstemp(dir=folder, prefix="upload-")
  size = 0
  try:
    with os.fdopen(handle, "wb") as file:
      async for block in request.stream():
        size += len(block)
        if size > limits.size:
          raise ConfigError(f"a file of over {limits.size / 2**20:.0f} MiB; give smaller ones")
        await anyio.to_thread.run_sync(partial(file.write, block))
  except BaseException:
    Path(name).unlink(missing_ok=True)
    raise
  return Path(name)
