"""The smoke-sized runs that the drill kills and races, in one list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

INPUT = "input"


# Words after `python -m`, run in a folder that has `input/` beside it: everything is relative.
_PICTURES = ("--noprogress", f"--input=../{INPUT}", "--output=out")
PROTECT = (
  *("experiments.protect", "--config=demo:smoke", "--method=udp", *_PICTURES),
  *("--config.num_rounds=4", "--config.checkpoint.every_rounds=1"),
)
NOISE = ("experiments.protect", "--config=demo:smoke", "--method=random_noise", *_PICTURES)
PURIFY = ("experiments.purify", "--method=gaussian_blur", *_PICTURES)
EUDP = (
  *("experiments.eudp", "--config=demo:smoke", "--noprogress", "--workdir=work"),
  *("--config.rows=('eudp',)", "--config.evaluation.features="),
  *("--config.num_rounds=4", "--config.checkpoint.every_rounds=1"),
  *("--config.threat.options.train_steps=6", "--config.checkpoint.every_steps=2"),
)
IMPRESS = (
  *("experiments.impress", "--config=demo:smoke", "--noprogress", "--workdir=work"),
  *("--rows=random_noise", "--purifiers=jpeg", "--threats=img2img"),
  "--config.evaluation.features=",
)

KILLED = {"eudp": EUDP, "protect": PROTECT, "purify": PURIFY, "impress": IMPRESS}
# Who starts first, who second.
RACED = {
  "protect, protect": (PROTECT, PROTECT),
  "purify, purify": (PURIFY, PURIFY),
  "eudp, eudp": (EUDP, EUDP),
  "protect, purify": (NOISE, PURIFY),
}


def make_input(folder: Path) -> None:
  """Pictures of two sizes, one with transparency: the same bytes at every call."""
  folder.mkdir(parents=True, exist_ok=True)
  generator = np.random.default_rng(0)
  for number in range(6):
    channels = 4 if number == 5 else 3
    size = (18, 20) if number % 2 else (16, 16)
    levels = generator.integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(levels).save(folder / f"{number}.png")
