"""The smoke-sized runs that the drill kills and races, in one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.drill import processes

INPUT, MODEL = "input", "model"

# Words after `python -m`, run in a folder with `input/` and `model/` beside it.
_PICTURES = ("--noprogress", f"--input=../{INPUT}", "--output=out")
PROTECT = (
  *("experiments.protect", "--config=demo_pixels:smoke", "--method=udp", *_PICTURES),
  *("--config.num_rounds=4", "--config.checkpoint.every_rounds=1"),
)
NOISE = ("experiments.protect", "--config=demo_pixels:smoke", "--method=random_noise", *_PICTURES)
PURIFY = ("experiments.purify", "--method=gaussian_blur", *_PICTURES)
EUDP = (
  *("experiments.eudp", "--config=demo_pixels:smoke", "--noprogress", "--workdir=work"),
  *("--config.rows=('eudp',)", "--config.data.limit=16", "--config.data.holdout=6.0"),
  *("--config.num_rounds=4", "--config.checkpoint.every_rounds=1"),
  *("--config.threat.options.train_steps=6", "--config.checkpoint.every_steps=2"),
)
IMPRESS = (
  *("experiments.impress", "--config=demo:smoke", "--noprogress", "--workdir=work"),
  *("--rows=random_noise", "--purifiers=jpeg", "--threats=img2img"),
  *("--config.evaluation.features=", "--config.model.path=../model"),
)

KILLED = {"eudp": EUDP, "protect": PROTECT, "purify": PURIFY, "impress": IMPRESS}
# Who starts first, who second.
RACED = {
  "protect, protect": (NOISE, NOISE),
  "purify, purify": (PURIFY, PURIFY),
  "eudp, eudp": (EUDP, EUDP),
  "protect, purify": (NOISE, PURIFY),
}


def prepare(words: Sequence[str], folder: Path, env: dict[str, str]) -> None:
  """Makes what a run needs beside its folder `run/`: pictures, and a tiny model if it names one."""
  make_input(folder / INPUT)
  if any(f"../{MODEL}" in word for word in words) and not (folder / MODEL).exists():
    made = processes.run(("tests.drill.tiny_model", f"{MODEL}.new"), folder, env)
    if made.code != 0:
      raise RuntimeError(f"the tiny model cannot be made: {made.err[-300:]}")
    (folder / f"{MODEL}.new").rename(folder / MODEL)


def make_input(folder: Path) -> None:
  """Pictures of two sizes, one with transparency: the same bytes at every call."""
  if folder.exists():
    return
  folder.mkdir(parents=True)
  generator = np.random.default_rng(0)
  for number in range(6):
    channels = 4 if number == 5 else 3
    size = (18, 20) if number % 2 else (16, 16)
    levels = generator.integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(levels).save(folder / f"{number}.png")
