"""What made a number, as git, the packages and the system say it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from udp_jax.runtime import provenance

ROOT = Path(provenance.__file__).parent


def test_the_command_is_what_a_person_would_type(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(sys, "argv", ["/long/way/eudp.py", "--config=demo", "--title=a b"])
  main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="experiments.eudp"))
  monkeypatch.setitem(sys.modules, "__main__", main)
  assert provenance.command() == "python -m experiments.eudp --config=demo '--title=a b'"
  main.__spec__ = None
  assert provenance.command() == "python /long/way/eudp.py --config=demo '--title=a b'"
  monkeypatch.setattr(sys, "argv", ["/long/way/bin/udp-jax", "protect", "pictures"])
  assert provenance.command() == "udp-jax protect pictures"


def _git(folder: Path, *words: str) -> str:
  who = ["-c", "user.name=a", "-c", "user.email=a@b"]
  done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
  return done.stdout.strip()


def test_a_commit_with_changes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
  monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
  monkeypatch.delenv("UDP_JAX_COMMIT", raising=False)
  assert provenance.commit() == ""
  monkeypatch.setenv("UDP_JAX_COMMIT", "abc")
  assert provenance.commit() == "abc"
  (tmp_path / "provenance.py").write_text("1")
  _git(tmp_path, "init", "-q")
  _git(tmp_path, "add", ".")
  _git(tmp_path, "commit", "-qm", "one")
  head = _git(tmp_path, "rev-parse", "HEAD")[:12]
  assert len(head) == 12 and provenance.commit() == head
  (tmp_path / "new").touch()
  assert provenance.commit() == head
  (tmp_path / "provenance.py").write_text("2")
  assert provenance.commit() == f"{head} (with uncommitted changes)"


def test_versions_are_those_that_are_installed() -> None:
  found = provenance.versions()
  assert found["python"] == platform.python_version() and found["jax"] == jax.__version__
  for name in ("numpy", "optax", "pillow"):
    assert found[name] == importlib.metadata.version(name)


def test_hardware_is_what_jax_and_the_system_say() -> None:
  found = provenance.hardware()
  assert found["backend"] == jax.default_backend()
  assert found["devices"].startswith(f"{jax.device_count()} x ")
  if hasattr(os, "sched_getaffinity"):
    assert found["cores"] == str(len(os.sched_getaffinity(0)))
  assert found["processor"]
  assert "gpu" not in found


@pytest.mark.parametrize(
  ("tool", "said"),
  [
    ("echo 'NVIDIA Card 80GB, 580.65, 81559 MiB'", "NVIDIA Card 80GB, driver 580.65, 81559 MiB"),
    ("echo 'Failed to initialize NVML: Unknown'; exit 9", "Card"),
    ("echo 'No devices were found'", "Card"),
    (None, "Card"),
  ],
)
def test_a_gpu_has_its_card(tool, said: str, tmp_path: Path, monkeypatch) -> None:
  device = types.SimpleNamespace(device_kind="Card", local_hardware_id=0)
  monkeypatch.setattr(jax, "devices", lambda: [device])
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  if tool is not None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{tool}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path))
  found = provenance.hardware()
  assert (found["gpu"], found["devices"]) == (said, "1 x Card")
