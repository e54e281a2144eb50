"""A browser for pages: runs a page in headless Chromium and reports what it found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import make_assets, make_report
from udp_jax.report import html

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--virtual-time-budget=20000",
  "--dump-dom",
)


# First on the page, so that nothing the page itself does goes unseen.
_WATCH = """<script>
window.seenErrors = [];
addEventListener("error", e => seenErrors.push(
  e.message || "failed to load " + (e.target.currentSrc || e.target.src || e.target.href)), true);
addEventListener("unhandledrejection", e => seenErrors.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => seenErrors.push("blocked " + e.blockedURI));
for (const level of ["error", "warn"]) {
  const original = console[level];
  console[level] = (...args) => { seenErrors.push(args.join(" ")); original(...args); };
}
</script>"""


_REPORT = """<script>
addEventListener("load", async () => {
  let result = null;
  try { result = await (async () => { %s })(); } catch (e) { seenErrors.push(String(e)); }
  const urls = performance.getEntriesByType("resource").map(entry => entry.name);
  document.body.dataset.findings = JSON.stringify(
    {result, errors: seenErrors, requests: urls.filter(url => !url.startsWith("data:"))});
});
</script>"""


class _BodyData(HTMLParser):
  findings: str | None = None

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag == "body":
      self.findings = dict(attrs).get("data-findings")


@pytest.fixture
def open_in_browser(tmp_path: Path) -> Callable[[Path, str], dict[str, Any]]:
  """`open_in_browser(page, probe)`: loads a copy of `page`, runs `probe`, a JavaScript body.

  Returns {"result": what `probe` returned, "errors": messages of errors, warnings, failed loads
  and policy violations, "requests": addresses of everything loaded that is not a data URI}.
  """
  browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
  if browser is None:
    pytest.skip(f"no browser: none of {', '.join(_BROWSERS)} is on PATH")

  def visit(page: Path, probe: str = "return null") -> dict[str, Any]:
    html = page.read_text("utf-8").replace("<head>", "<head>" + _WATCH, 1)
    assert _WATCH in html, f"{page} has no <head>"
    html = html.replace("</body>", _REPORT % probe + "</body>", 1)
    folder = Path(tempfile.mkdtemp(prefix="browser-", dir=tmp_path))
    copy = folder / "page.html"
    # The byte order mark, because the page's own charset may now come too late to be seen.
    copy.write_text(html, "utf-8-sig")
    command = [browser, *_FLAGS, f"--user-data-dir={folder / 'profile'}", copy.as_uri()]
    process = subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, "HOME": str(folder)},
      start_new_session=True,
    )
    try:
      dump, log = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      _, log = process.communicate()
      pytest.fail(f"{browser} did not finish in 120 s:\n{log.decode(errors='replace')[-2000:]}")
    parser = _BodyData()
    parser.feed(dump.decode("utf-8"))
    assert parser.findings, f"{browser} found nothing:\n{log.decode(errors='replace')[-2000:]}"
    return json.loads(parser.findings)

  return visit


@pytest.fixture(scope="module")
def source() -> str:
  """The page of `make_report` and `make_assets`, which takes a second to draw."""
  return html.render(make_report(), make_assets())
