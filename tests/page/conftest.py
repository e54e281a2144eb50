"""A page that runs, and a browser that a test drives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--hide-scrollbars",
)
_NEEDED = "needs the extra `page` and tests/page/requirements.txt: make test_page"


class Served:
  """A page's process; `kill` and `start` may follow each other."""

  def __init__(self, workdir: Path, *words: str):
    self.workdir, self._words = workdir, words
    self.port, self.url = 0, ""
    self.process: subprocess.Popen[str] | None = None

  def start(self) -> None:
    """Starts it, on the same port as before, and waits until it answers."""
    command = [sys.executable, "-m", "experiments.page", f"--workdir={self.workdir}"]
    self.process = subprocess.Popen(
      [*command, f"--port={self.port}", *self._words],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self.process.stdout is not None
    self.process.stdout.readline()  # Where the jobs are.
    self.url = self.process.stdout.readline().removeprefix("page: ").strip()
    assert self.url.startswith("http://127.0.0.1:"), self.url
    self.port = int(self.url.strip("/").rpartition(":")[2])

  def kill(self) -> None:
    """Ends it at once, like a crash."""
    assert self.process is not None
    self.process.send_signal(signal.SIGKILL)
    self.process.wait()

  def close(self) -> None:
    """Ends it in order, with its run."""
    if self.process is not None and self.process.poll() is None:
      self.process.terminate()
      self.process.wait(60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
  """A page with sizes that take seconds; skips where Gradio is missing."""
  pytest.importorskip("gradio", reason=_NEEDED)
  page = Served(tmp_path / "page", "--config=folder:smoke", "--max_pictures=5")
  page.start()
  yield page
  page.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
  """Headless Chromium behind selenium's driver; skips where either is missing."""
  webdriver = pytest.importorskip("selenium.webdriver", reason=_NEEDED)
  binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
  driver = shutil.which("chromedriver")
  if binary is None or driver is None:
    pytest.skip("no browser: chromium and chromedriver must be on PATH")
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
  chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
  chrome.set_window_size(1100, 1400)
  yield chrome
  chrome.quit()


@pytest.fixture
def until() -> Callable[..., Any]:
  """`until(f)`: calls `f` until it returns something true, which it returns; fails in time."""

  def wait(holds: Callable[[], Any], seconds: float = 60.0, why: str = "waited in vain") -> Any:
    end = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < end:
      try:
        if found := holds():
          return found
      except Exception as error:  # The page may be drawn anew between two questions.
        last = error
      time.sleep(0.2)
    raise AssertionError(f"{why}: {last}")

  return wait
