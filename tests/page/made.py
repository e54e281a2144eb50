"""A finished job made by hand: two pictures, one in a folder, changed by up to 8 levels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from udp_jax.data import images, marks
from udp_jax.page import jobs as jobs_lib
from udp_jax.page.jobs import Job, Jobs
from udp_jax.runtime import files

NAMES = ("a", "in/b")


class Made(NamedTuple):
  jobs: Jobs
  job: Job


def finished_job(workdir: Path, size: tuple[int, int] = (40, 60)) -> Made:
  generator = np.random.default_rng(0)
  jobs = Jobs(workdir)
  job = jobs.create()
  pictures = []
  for name in NAMES:
    clean = generator.integers(20, 230, (*size, 3), np.uint8)
    change = generator.choice(np.array([-8, 0, 8]), clean.shape)
    images.write_png(job.pictures / f"{name}.png", clean)
    images.write_png(job.clean / f"{name}.png", clean)
    images.write_png(job.output / f"{name}.png", (clean + change).astype(np.uint8))
    entry = {"name": name, "relative": f"{name}.png", "height": size[0], "width": size[1]}
    pictures.append(entry)
  made = {
    "format": marks.FORMAT,
    "complete": True,
    "radius_255": 8.0,
    "against": {"statement": "nothing at all"},
    "images": [{"file": f"{name}.png"} for name in NAMES],
  }
  files.write_json(job.output / marks.MANIFEST, made)
  settings = {"model": "tiny_ldm", "method": "eudp", "radius_255": 8.0, "config": ""}
  settings |= {"pictures": pictures, "megapixels": 2 * size[0] * size[1] / 1e6}
  jobs.submit(job, settings)
  jobs.change(job, jobs_lib.FINISHED, only=jobs_lib.WAITING, seconds=12.0)
  return Made(jobs, job)
