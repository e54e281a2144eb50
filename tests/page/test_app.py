"""The page in Chromium, from the upload to the files that are downloaded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.page.conftest import ROOT, Served
from tests.page.test_intake import HOSTILE
from udp_jax.data import images
from udp_jax.errors import ConfigError

Until = Callable[..., Any]


def test_a_mask_is_where_something_was_painted() -> None:
  app = pytest.importorskip("udp_jax.page.app", reason="needs the extra `page`: make test_page")
  layer = np.zeros((10, 20, 4), np.uint8)
  layer[2:4, 5:10, 3] = 1
  white = app.painted_over({"layers": [np.zeros_like(layer), layer]}, (100, 400))
  expected = np.zeros((100, 400), bool)
  expected[20:40, 100:200] = True
  assert (white == np.where(expected, 255, 0)[..., None]).all() and white.shape[-1] == 3
  for nothing in (None, {"layers": []}, {"layers": [np.zeros_like(layer)]}):
    with pytest.raises(ConfigError, match="nothing is painted"):
      app.painted_over(nothing, (4, 4))


class Page:
  """The page in a browser, by the names of its parts."""

  def __init__(self, browser: Any, served: Served, until: Until):
    self.browser, self._served, self._until = browser, served, until

  def open(self) -> None:
    self.browser.get(self._served.url)
    self.waits("pick-files", "")

  def part(self, name: str) -> Any:
    return self.browser.find_element("id", name)

  def text(self, name: str) -> str:
    return self.part(name).text

  def waits(self, name: str, words: str, seconds: float = 60.0) -> str:
    def there() -> bool:
      return self.part(name) is not None and words in self.text(name)

    try:
      self._until(there, seconds)
    except AssertionError:
      raise AssertionError(f"no {words!r} in {name}: {self.text(name)!r}") from None
    return self.text(name)

  def press(self, name: str) -> None:
    self._until(lambda: self.part(name).is_displayed())
    self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.part(name))
    self.part(name).click()

  def upload(self, *paths: Path) -> None:
    self.part("pick-files").send_keys("\n".join(map(str, paths)))


@pytest.fixture
def page(browser: Any, served: Served, until: Until) -> Page:
  made = Page(browser, served, until)
  made.open()
  return made


def _pictures(folder: Path) -> list[Path]:
  """Two pictures of 64x96 with a text and names that file systems allow and servers do not."""
  y, x, c = np.mgrid[:64, :96, :3]
  made = []
  for number, name in enumerate(("Katze (1) #ü.png", "in/b.png")):
    waves = 128 + 90 * np.sin(0.2 * (number + 1) * x + 0.13 * y + c)
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Somebody")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(waves.astype(np.uint8)).save(folder / name, pnginfo=info)
    made.append(folder / name)
  (folder / "in" / "b.txt").write_text("a cat")
  return made


def _paint(page: Page, until: Until) -> None:
  """Paints a stroke over the middle of the canvas."""
  from selenium.webdriver import ActionChains

  canvas = until(lambda: page.browser.find_element("css selector", "#editor canvas"))
  page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
  time.sleep(1)
  chain = ActionChains(page.browser).move_to_element(canvas).click_and_hold()
  for _ in range(4):
    chain.move_by_offset(5, 3)
  chain.release().perform()
  time.sleep(1)


@pytest.mark.slow
def test_from_upload_to_download(page: Page, served: Served, until: Until, tmp_path: Path) -> None:
  first, second = _pictures(tmp_path / "mine")
  page.upload(first)
  page.waits("taken", "1 picture,")
  page.part("pick-folder").send_keys(str(second.parent))
  page.waits("taken", "2 pictures")
  assert "96 x 64" in page.text("taken")
  page.open()  # A reload keeps what came in.
  page.waits("taken", "2 pictures")

  page.browser.find_element("xpath", "//button[contains(., 'Protect only a part')]").click()
  choose = until(lambda: page.browser.find_element("css selector", "#mask-of input"))
  choose.click()
  until(
    lambda: page.browser.find_element("xpath", "//*[@role='option'][contains(., 'Katze')]")
  ).click()
  _paint(page, until)
  page.press("keep-mask")
  page.waits("mask-said", "will be protected")

  page.press("start")
  page.waits("status", "Running")
  page.press("stop")
  page.waits("status", "Stopped", 40)
  page.press("go-on")
  page.waits("status", "Running")
  served.kill()
  served.start()
  page.open()
  page.waits("status", "Finished", 300)
  page.waits("facts", "as promised")
  assert "evidence for Stable Diffusion: none" in page.text("against")
  page.press("verify")
  assert "OK: 2 files keep the budget" in page.waits("verified", "budget")

  (job,) = (served.workdir / "jobs").iterdir()
  address = page.browser.find_element("css selector", "#download a")
  with urllib.request.urlopen(address.get_attribute("href")) as answer:
    archive = zipfile.ZipFile(io.BytesIO(answer.read()))
  mask = images.read_image(job / "masks" / "Katze (1) #ü.png").pixels
  assert mask.shape == (64, 96, 3) and 0 < np.mean(mask > 0) < 0.9

  output = tmp_path / "cli"
  command = ["--config=folder:smoke", "--method=eudp", "--model=tiny_ldm", "--radius_255=8"]
  command += [f"--input={tmp_path / 'mine'}", f"--output={output}", "--step_size_255=1"]
  command += [f"--mask={job / 'masks'}", "--noprogress"]
  done = subprocess.run(
    [sys.executable, "-m", "experiments.protect", *command], cwd=ROOT, capture_output=True
  )
  assert done.returncode == 0, done.stderr
  names = sorted(
    p.relative_to(output).as_posix()
    for p in output.rglob("*")
    if p.is_file() and not p.name.startswith(".")
  )
  assert names == archive.namelist()
  assert {"Katze (1) #ü.png", "in/b.png", "in/b.txt", "manifest.json"} <= set(names)
  for name in names:
    if name != "manifest.json":  # It says when it was made.
      assert archive.read(name) == (output / name).read_bytes(), name
  hashes = [
    {entry["file"]: entry["sha256"] for entry in json.loads(text)["images"]}
    for text in (archive.read("manifest.json"), (output / "manifest.json").read_bytes())
  ]
  assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_nothing_comes_from_or_goes_to_another_host(page: Page, until: Until) -> None:
  from selenium.webdriver import ActionChains, Keys

  until(lambda: page.browser.find_elements("css selector", "#method input"))
  asked = []
  for entry in page.browser.get_log("performance"):
    message = json.loads(entry["message"])["message"]
    if message["method"] == "Network.requestWillBeSent":
      asked.append(message["params"]["request"]["url"])
  own = page.browser.current_url
  assert (
    asked and [url for url in asked if not url.startswith((own, "data:", "blob:", "chrome"))] == []
  )
  severe = [entry["message"] for entry in page.browser.get_log("browser")]
  assert not [line for line in severe if "Content Security Policy" in line]

  # Headings without a gap, and a name for all that can be focused.
  script = "return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
  levels = page.browser.execute_script(script)
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
  unnamed = page.browser.execute_script(
    "return [...document.querySelectorAll('input,button,select,textarea')].filter(e => "
    "e.offsetParent && !(e.labels && e.labels.length) && !e.ariaLabel && !e.title && "
    "!e.getAttribute('aria-labelledby') && !e.textContent.trim()).map(e => e.outerHTML)"
  )
  assert unnamed == []
  missing = "return [...document.images].filter(i => !i.hasAttribute('alt')).length"
  assert page.browser.execute_script(missing) == 0

  # The keyboard alone reaches the upload, and every choice.
  reached = set()
  for _ in range(40):
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    active = page.browser.switch_to.active_element
    reached |= {active.get_attribute("id"), active.get_attribute("type")}
  assert {"pick-files", "pick-folder", "radio", "start"} <= reached


@pytest.mark.slow
def test_hostile_uploads_say_what_is_wrong(page: Page, served: Served, tmp_path: Path) -> None:
  whole = _pictures(tmp_path / "mine")[0].read_bytes()
  files = {f"{kind}.zip": make() for kind, make in HOSTILE.items() if kind != "too many"}
  del files["too large.zip"]  # Of a smaller limit than the page's.
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  for name in sorted(files):
    page.upload(tmp_path / name)
    assert name.removesuffix(".zip") in page.waits("upload-said", "error: ", 20)
    page.browser.execute_script("document.getElementById('upload-said').textContent = ''")
  huge = bytearray(whole)
  huge[16:24] = (60_000).to_bytes(4, "big") * 2
  (tmp_path / "huge.png").write_bytes(huge)
  (tmp_path / "cut.png").write_bytes(whole[:300])
  page.upload(tmp_path / "cut.png", tmp_path / "huge.png")
  page.waits("taken", "error: ")
  assert str(served.workdir) not in page.text("taken")
  page.press("start")
  page.waits("wrong", "error: there are no pictures")
  page.upload(tmp_path / "mine" / "in" / "b.png")
  assert "skipped: cut.png" in page.waits("taken", "1 picture,")
  page.upload(*(tmp_path / "mine").glob("K*.png"), *_five_more(tmp_path))
  page.waits("taken", "--max_pictures")


def _five_more(folder: Path) -> list[Path]:
  made = [folder / f"more{number}.png" for number in range(5)]
  for path in made:
    Image.new("RGB", (8, 8)).save(path)
  return made


@pytest.mark.slow
def test_no_other_file_is_read(served: Served) -> None:
  secret = served.workdir.parent / "secret.png"
  Image.new("RGB", (8, 8)).save(secret)
  places = ["/etc/passwd", str(secret), f"{served.workdir}/jobs/../secret", "../../etc/passwd"]
  places += [str(ROOT / "pyproject.toml"), str(served.workdir / "secret")]
  for place in places:
    for route in ("gradio_api/file=", "file=", "gradio_api/stream/", "static/", "assets/"):
      try:
        with urllib.request.urlopen(f"{served.url}{route}{place}") as answer:
          raise AssertionError(f"{route}{place}: {answer.read(100)!r}")
      except urllib.error.HTTPError as error:
        assert error.code in (400, 403, 404, 405), (route, place)
