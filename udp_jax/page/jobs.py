"""Jobs of the page: one folder each, which outlives the page's process.

jobs/ID/pictures/      what was uploaded, with names and folders
jobs/ID/masks/         painted masks, one for every picture, or no such folder
jobs/ID/settings.json  what was chosen
jobs/ID/state.json     `State`
jobs/ID/protected/     the output of `udp-jax protect`, and its work folder beside it
jobs/ID/log            what the run says on stderr, said: on stdout
"""

from __future__ import annotations

import datetime
import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax.errors import MissingDataError
from udp_jax.runtime import files

DRAFT, QUEUED, RUNNING = "draft", "queued", "running"
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
WAITING = (QUEUED, RUNNING)
PROTECT, VIEW = "protect", "view"

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{16}(-[0-9a-f]{12})?")
_TAIL = 64 << 10
# A draft that nobody started in this many seconds is deleted.
_DRAFT_S = 24 * 3600.0


class State(NamedTuple):
  """What became of a job.

  Attributes:
    status: "draft", "queued", "running", "finished", "failed" or "stopped".
    since: when it got this status, Unix time in seconds.
    order: place in the queue: jobs with smaller numbers come first.
    seconds: how long its runs took so far.
    message: what to tell the user, one line; for failures the run's own error line.
  """

  status: str = DRAFT
  since: float = 0.0
  order: float = 0.0
  seconds: float = 0.0
  message: str = ""


class Job(NamedTuple):
  """A job's folder; all names below are in it."""

  folder: Path

  @property
  def id(self) -> str:
    """The name by which browsers know the job; nobody can guess it."""
    return self.folder.name

  @property
  def pictures(self) -> Path:
    """What was uploaded."""
    return self.folder / "pictures"

  @property
  def masks(self) -> Path:
    """Masks, by the pictures' names."""
    return self.folder / "masks"

  @property
  def output(self) -> Path:
    """The protected pictures."""
    return self.folder / "protected"

  @property
  def work(self) -> Path:
    """The run's work folder."""
    return self.folder / "work"

  @property
  def clean(self) -> Path:
    """The 8-bit reference that the protected pictures are compared with."""
    return self.work / "clean"

  @property
  def shown(self) -> Path:
    """Pictures made for looking at."""
    return self.folder / "shown"

  @property
  def log(self) -> Path:
    """What the run says on stderr."""
    return self.folder / "log"

  @property
  def said(self) -> Path:
    """What the run says on stdout."""
    return self.folder / "said"

  def tail(self) -> str:
    """Returns the last 64 KiB of what the run said on stderr."""
    if not self.log.exists():
      return ""
    with open(self.log, "rb") as file:
      file.seek(max(0, self.log.stat().st_size - _TAIL))
      return file.read().decode("utf-8", "replace")

  def settings(self) -> dict[str, Any]:
    """What was chosen; {} before."""
    path = self.folder / "settings.json"
    return files.read_json(path) if path.exists() else {}

  def state(self) -> State:
    """The state; a job without a readable one is a draft."""
    path = self.folder / "state.json"
    if not path.exists():
      return State(since=self.folder.stat().st_mtime)
    found = files.read_json(path)
    return State(**{name: found[name] for name in State._fields if name in found})


class Jobs:
  """All jobs of a work folder. Its methods may be called from several threads.

  Args:
    workdir: the page's work folder.
  """

  def __init__(self, workdir: Path):
    self.folder = workdir / "jobs"
    self._lock = threading.RLock()
    with files.output_errors(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)

  def create(self) -> Job:
    """Makes an empty draft."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    job = Job(self.folder / f"{now}-{secrets.token_hex(8)}")
    with files.output_errors(job.folder):
      job.pictures.mkdir(parents=True)
    self._write(job, State(DRAFT, time.time()))
    return job

  def create_view(self, parent: Job, suffix: str, settings: dict[str, Any]) -> Job:
    """Returns the job that belongs to another one under `suffix` (12 hex digits); queues it once.

    A view that failed or was stopped is queued again.
    """
    job = Job(self.folder / f"{parent.id}-{suffix}")
    with self._lock:
      there = (job.folder / "settings.json").exists()
      if not there:
        files.write_json(job.folder / "settings.json", {"kind": VIEW, **settings})
      if not there or job.state().status in (DRAFT, FAILED, STOPPED):
        self._write(job, State(QUEUED, time.time(), time.time()))
    return job

  def get(self, name: str) -> Job:
    """Returns the job of an ID. Raises MissingDataError if there is none."""
    job = Job(self.folder / name)
    if not _ID.fullmatch(name) or not job.folder.is_dir():
      raise MissingDataError("this job is not here any more; start with the pictures again")
    return job

  def all(self) -> list[Job]:
    """Returns all jobs, the newest first."""
    names = sorted((path.name for path in self.folder.iterdir()), reverse=True)
    return [Job(self.folder / name) for name in names if _ID.fullmatch(name)]

  def queue(self) -> list[Job]:
    """Returns the jobs that run or wait, in the order in which they run."""
    waiting = [(job, job.state()) for job in self.all()]
    waiting = [(job, state) for job, state in waiting if state.status in WAITING]
    waiting.sort(key=lambda pair: (pair[1].status != RUNNING, pair[1].order, pair[0].id))
    return [job for job, _ in waiting]

  def submit(self, job: Job, settings: dict[str, Any]) -> None:
    """Queues a draft with what was chosen; a job that already has been is left as it is."""
    with self._lock:
      if job.state().status == DRAFT:
        files.write_json(job.folder / "settings.json", {"kind": PROTECT, **settings})
        self._write(job, State(QUEUED, time.time(), time.time()))

  def go_on(self, job: Job) -> None:
    """Queues a stopped or failed job again; its run goes on where it was."""
    with self._lock:
      state = job.state()
      if state.status in (STOPPED, FAILED):
        self._write(job, State(QUEUED, time.time(), time.time(), state.seconds))

  def change(self, job: Job, status: str, *, only: tuple[str, ...], **more: Any) -> bool:
    """Changes a job's status if it is one of `only`; returns whether it did."""
    with self._lock:
      state = job.state()
      if state.status not in only:
        return False
      self._write(job, state._replace(status=status, since=time.time(), **more))
      return True

  def delete_old_drafts(self) -> None:
    """Deletes drafts of yesterday and before."""
    with self._lock:
      for job in self.all():
        state = job.state()
        if state.status == DRAFT and time.time() - state.since > _DRAFT_S:
          shutil.rmtree(job.folder, ignore_errors=True)

  def _write(self, job: Job, state: State) -> None:
    files.write_json(job.folder / "state.json", state._asdict())
