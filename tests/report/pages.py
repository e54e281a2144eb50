"""A report with some of everything, and a parser that says what its page holds."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

NASTY = "<script>alert('$x_1$')</script>\"&amp; <img src=x onerror=alert(1)>"


def make_report() -> dict:
  def metrics(fd, std, psnr, loss):
    return {
      "fd": {"mean": fd, "std": std, "values": [fd - std, fd + std]},
      "psnr": {"mean": psnr, "std": None, "values": [psnr]},
      "loss": {"mean": loss, "std": None, "values": []},
    }

  def victim(end):
    steps = list(range(0, 101, 5))
    mean = [end + 3.0 * 0.5 ** (step / 2) for step in steps]
    low, high = [0.9 * value for value in mean], [1.1 * value for value in mean]
    return {"steps": steps, "mean": mean, "low": low, "high": high}

  return {
    "title": "A study of pictures",
    "summary": "Pictures were protected and learned from.",
    "notice": "demonstration, not evidence",
    "command": "python -m experiments.eudp --config=demo",
    "commit": "0123abc",
    "date": "2026-11-22",
    "seeds": [3, 4],
    "hardware": {"device": "cpu"},
    "versions": {"jax": "0.10.2"},
    "config": {"radius_255": 16, "model": {"channels": (32, 64)}},
    "data": {
      "source": "builtin",
      "train_images": 120,
      "holdout_images": 60,
      "image_size": 4,
      "notes": ["a note on the data"],
    },
    "radius_255": 16,
    "feature_label": "FD-EffLite0",
    "columns": [
      {"key": "fd", "label": "FD", "help": "distance", "better": "higher", "digits": 1},
      {"key": "psnr", "label": "PSNR", "help": "similarity", "better": "lower", "digits": 2},
      {"key": "loss", "label": "Final loss on it", "help": "loss", "better": None, "digits": 4},
    ],
    "rows": [
      {"name": "clean", "label": "Clean", "control": True,
       "metrics": metrics(100.0, 2.0, float("nan"), 0.05)},
      {"name": "noise", "label": "Random noise", "control": True,
       "metrics": metrics(90.5, 0.25, 27.0, 0.0625)},
      {"name": "eudp", "label": "EUDP", "control": False,
       "metrics": metrics(1000.0, 12.0, 26.123, None)},
    ],
    "curves": {
      "victims": {"clean": victim(0.05), "eudp": victim(0.09)},
      "protection": {
        "eudp": {"round": [0, 1, 2], "min_loss": [0.3, None, 0.1], "max_loss": [0.2, 0.3, 0.4]}
      },
    },
    "timesteps": {"eudp": [0.5, 0.3, 0.2]},
  }  # fmt: skip


def make_assets() -> dict:
  rng = np.random.default_rng(0)
  clean = rng.integers(0, 256, (3, 4, 5, 3), np.uint8)
  change = rng.integers(-16, 17, clean.shape)
  return {
    "clean": clean,
    "protected": {"eudp": np.clip(clean + change, 0, 255).astype(np.uint8)},
    "samples": {
      "eudp": rng.integers(0, 256, (5, 4, 4, 3), np.uint8),
      "clean": rng.integers(0, 256, (4, 4, 4, 3), np.uint8),
    },
  }


class Page(HTMLParser):
  """What a page holds: elements, the main table's texts, and its visible text."""

  def __init__(self, source: str):
    super().__init__(convert_charrefs=True)
    self.elements: list[tuple[str, dict]] = []
    self.table: list[list[str]] = []
    self.text = ""
    self._cell = False
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == "tr":
      self.table.append([])
    if tag in ("td", "th"):
      self.table[-1].append("")
      self._cell = True

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self._cell = False

  def handle_data(self, data):
    self.text += data
    if self._cell:
      self.table[-1][-1] += data

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]

  def ids(self):
    return [attrs["id"] for _, attrs in self.elements if "id" in attrs]

  def pixels(self, alt):
    [uri] = [attrs["src"] for attrs in self.all("img") if attrs["alt"] == alt]
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[len(prefix) :]))))


def squeeze(cell: str) -> str:
  return " ".join(cell.split())
