"""Our own routes: uploads and their limits, and what other sites cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.page.test_intake import archive, png
from udp_jax.page.intake import Limits
from udp_jax.page.jobs import Job, Jobs
from udp_jax.page.runner import Runner

pytest.importorskip("gradio", reason="needs the extra `page`: make test_page")
from fastapi.testclient import TestClient

from udp_jax.page import server
from udp_jax.page.server import Settings

OURS = {"X-Udp-Page": "1"}


def settings(tmp_path: Path, host: str = "127.0.0.1") -> Settings:
  return Settings(tmp_path, host, 1, Limits(2, 1.0, 10_000), {"tiny_ldm": "tiny_ldm"})


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
  return Jobs(tmp_path)


@pytest.fixture
def client(tmp_path: Path, jobs: Jobs) -> Iterator[Any]:
  app = server.make(settings(tmp_path), jobs, Runner(jobs, lambda job: []))
  with TestClient(app, base_url="http://127.0.0.1") as made:
    yield made


def put(client: Any, job: Job | str, name: str, content: bytes) -> Any:
  place = job if isinstance(job, str) else job.id
  headers = OURS | {"X-Path": quote(name, safe="")}
  return client.put(f"/drafts/{place}", content=content, headers=headers)


def test_files_come_in_with_their_folders(client: Any, jobs: Jobs) -> None:
  job = jobs.get(client.post("/drafts", headers=OURS).text)
  assert put(client, job, "in/é (1).png", png()).text == "1"
  assert put(client, job, "more.zip", archive(("b.png", png()), ("c.txt", b"cat"))).text == "2"
  assert sorted(p.name for p in job.pictures.rglob("*.*")) == ["b.png", "c.txt", "é (1).png"]
  assert sorted(path.name for path in job.folder.iterdir()) == ["pictures", "state.json"]


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("../../state.json", b"{}", "leads out"),
    ("/etc/cron.d/x", b"", "no path"),
    ("bomb.zip", archive(("a.png", bytes(8 << 20)), kind=8), "200 times"),
    ("large.png", bytes(20_000), "MiB"),
  ],
)
def test_what_is_refused_leaves_nothing(
  name: str, content: bytes, words: str, client: Any, jobs: Jobs
) -> None:
  job = jobs.create()
  answer = put(client, job, name, content)
  assert answer.status_code == 400
  assert answer.text.startswith("error: ") and words in answer.text
  assert sorted(path.name for path in job.folder.iterdir()) == ["pictures", "state.json"]
  assert list(job.pictures.iterdir()) == []


def test_started_and_unknown_jobs_take_nothing(client: Any, jobs: Jobs, tmp_path: Path) -> None:
  job = jobs.create()
  jobs.submit(job, {})
  assert "started already" in put(client, job, "a.png", png()).text
  for name in ("20200101-000000-0123456789abcdef", "%2e%2e"):
    assert put(client, name, "a.png", png()).status_code in (400, 404)
  assert not list(tmp_path.rglob("*.png"))


def test_other_sites_are_kept_out(client: Any, jobs: Jobs) -> None:
  assert client.post("/drafts").status_code == 400  # What a form of another site can send.
  asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
  allowed = client.options(f"/drafts/{jobs.create().id}", headers=asked).headers
  assert "access-control-allow-origin" not in allowed
  renamed = client.post("/drafts", headers=OURS | {"Host": "evil.example"})
  assert renamed.status_code == 400 and len(jobs.all()) == 1
  policy = client.get("/").headers["content-security-policy"]
  assert "frame-ancestors 'none'" in policy and "http" not in policy


def test_drafts_are_few(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(server, "_MOST_DRAFTS", 2)
  codes = [client.post("/drafts", headers=OURS).status_code for _ in range(3)]
  assert codes == [200, 200, 400]


@pytest.mark.parametrize(
  ("host", "local"),
  [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("pc", False)],
)
def test_which_addresses_are_this_machine(host: str, local: bool, tmp_path: Path) -> None:
  assert settings(tmp_path, host).local is local
