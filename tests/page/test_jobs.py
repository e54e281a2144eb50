"""Jobs as folders: states, the queue, and IDs that browsers send."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from udp_jax.errors import MissingDataError
from udp_jax.page import jobs as jobs_lib
from udp_jax.page.jobs import Jobs
from udp_jax.runtime import files


def test_a_job_outlives_the_process(tmp_path: Path) -> None:
  jobs = Jobs(tmp_path)
  job = jobs.create()
  assert job.state().status == jobs_lib.DRAFT and job.settings() == {}
  jobs.submit(job, {"method": "udp"})
  again = Jobs(tmp_path).get(job.id)
  assert again.state().status == jobs_lib.QUEUED
  assert again.settings() == {"kind": jobs_lib.PROTECT, "method": "udp"}
  jobs.submit(job, {"method": "eudp"})  # A second click changes nothing.
  assert job.settings()["method"] == "udp"


def test_the_queue_is_in_order_of_starting_and_what_ran_comes_first(tmp_path: Path) -> None:
  jobs = Jobs(tmp_path)
  first, second, third, draft = (jobs.create() for _ in range(4))
  for job in (second, first, third):
    jobs.submit(job, {})
  assert [job.id for job in jobs.queue()] == [second.id, first.id, third.id]
  assert jobs.change(third, jobs_lib.RUNNING, only=jobs_lib.WAITING)
  assert [job.id for job in jobs.queue()] == [third.id, second.id, first.id]
  assert jobs.change(second, jobs_lib.STOPPED, only=(jobs_lib.QUEUED,))
  assert not jobs.change(second, jobs_lib.RUNNING, only=jobs_lib.WAITING)
  jobs.go_on(second)
  assert [job.id for job in jobs.queue()] == [third.id, first.id, second.id]
  assert draft.id not in [job.id for job in jobs.queue()]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "jobs", "20260101-000000-zz", "/etc"])
def test_only_ids_name_jobs(name: str, tmp_path: Path) -> None:
  with pytest.raises(MissingDataError):
    Jobs(tmp_path).get(name)


def test_a_view_is_queued_once(tmp_path: Path) -> None:
  jobs = Jobs(tmp_path)
  job = jobs.create()
  view = jobs.create_view(job, "0" * 12, {"picture": "a"})
  assert jobs.get(view.id).settings() == {"kind": jobs_lib.VIEW, "picture": "a"}
  jobs.change(view, jobs_lib.FINISHED, only=jobs_lib.WAITING)
  jobs.create_view(job, "0" * 12, {"picture": "a"})
  assert view.state().status == jobs_lib.FINISHED
  jobs.change(view, jobs_lib.FAILED, only=(jobs_lib.FINISHED,))
  jobs.create_view(job, "0" * 12, {"picture": "a"})
  assert view.state().status == jobs_lib.QUEUED


def test_old_drafts_go_and_jobs_stay(tmp_path: Path) -> None:
  jobs = Jobs(tmp_path)
  old, new, started = (jobs.create() for _ in range(3))
  jobs.submit(started, {})
  for job in (old, started):
    state = files.read_json(job.folder / "state.json")
    files.write_json(job.folder / "state.json", state | {"since": state["since"] - 2 * 86400})
  bare = tmp_path / "jobs" / "20200101-000000-0123456789abcdef"  # Killed while it was made.
  bare.mkdir()
  os.utime(bare, (0, 0))
  jobs.delete_old_drafts()
  assert {job.id for job in jobs.all()} == {new.id, started.id}
