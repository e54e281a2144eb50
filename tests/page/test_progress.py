"""Progress, read from bars that tqdm itself draws."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tqdm import tqdm

from tests.page.made import NAMES, finished_job
from udp_jax.page import progress


def drawn(label: str, done: int, total: int, unit: str = "round") -> str:
  stream = io.StringIO()
  bar = tqdm(total=total, desc=label, unit=unit, file=stream, mininterval=0)
  bar.set_postfix({"loss": "0.1234"}, refresh=False)
  for _ in range(done):
    bar.update()
  bar.refresh()
  return stream.getvalue()


@pytest.mark.parametrize(
  ("label", "done", "total", "words", "fraction"),
  [
    ("clean reference", 1, 4, "Reading the pictures, 1 of 4", 0.25),
    ("protect eudp", 6, 20, "Computing the change, round 6 of 20", 0.3),
    ("protect advdm 2/4", 50, 100, "Computing the change, round 50 of 100, group 2 of 4", 0.375),
    ("written", 3, 3, "Writing the files, 3 of 3", 1.0),
    ("purify", 1, 2, "Cleaning, 1 of 2", 0.5),
  ],
)
def test_bars_are_read(label: str, done: int, total: int, words: str, fraction: float) -> None:
  text = "going on\n" + drawn("clean reference", 2, 2) + "\nnote\n" + drawn(label, done, total)
  found = progress.parse(text)
  assert (found.words, found.fraction) == (words, pytest.approx(fraction))


def test_nothing_is_known_before_the_first_bar() -> None:
  for text in ("", "warning: a|b [c<d\n", "\x00\xff"):
    assert progress.parse(text).fraction is None


def test_time_left_is_the_bars() -> None:
  text = "protect eudp:  30%|###       | 6/20 [00:03<1:02:07,  2.00round/s, loss=0.1]"
  assert progress.parse(text).left == "1:02:07"
  assert progress.parse(text.replace("1:02:07", "?")).left == ""


def test_pictures_are_done_when_their_files_are_there(tmp_path: Path) -> None:
  job = finished_job(tmp_path).job
  (job.output / "in" / "b.png").unlink()
  computing = progress.Progress("Computing the change, round 1 of 2", 0.5)
  for now, others in ((computing, "being worked on"), (progress.Progress(""), "waiting")):
    assert progress.per_picture(job, NAMES, now) == ["done", others]
  assert progress.per_picture(job, NAMES, None) == ["done", "not done"]
  assert progress.of_job(job).fraction is None
