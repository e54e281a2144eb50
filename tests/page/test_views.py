"""What is shown of a finished job, against numpy on the saved files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.page.made import finished_job
from udp_jax.data import images, marks
from udp_jax.errors import MissingDataError
from udp_jax.page import choices, views
from udp_jax.runtime import files


def read(path: Path) -> np.ndarray:
  return images.read_image(path).pixels.astype(int)


def test_comparison_is_of_the_saved_files(tmp_path: Path) -> None:
  job = finished_job(tmp_path).job
  found = views.compare(job, "in/b")
  change = read(job.output / "in/b.png") - read(job.clean / "in/b.png")
  assert (found.levels, found.gain) == (8, 15)
  assert found.share == pytest.approx(np.mean(change != 0))
  assert (read(found.amplified) == 128 + 15 * change).all()
  assert found.amplified.is_relative_to(job.folder)


@pytest.mark.parametrize("name", ["", "c", "../protected/a", "/etc/passwd", "../../secret"])
def test_only_pictures_of_the_job_are_read(name: str, tmp_path: Path) -> None:
  made = finished_job(tmp_path)
  images.write_png(tmp_path / "secret.png", np.zeros((4, 4, 3), np.uint8))
  with pytest.raises(MissingDataError):
    views.compare(made.job, name)
  with pytest.raises(MissingDataError):
    views.start_view(made.jobs, made.job, name)


def test_no_amplified_change_is_cut_off() -> None:
  for radius in (4, 7.5, 8, 16, 200):
    gain = views.gain_for(radius)
    change = np.array([-int(radius), int(radius)])
    assert gain == 1 or (np.diff(views.amplified(change, gain)) == 2 * gain * int(radius)).all()


def test_distance_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  job = finished_job(tmp_path).job
  monkeypatch.setattr(views, "installed_distance", lambda: None)
  assert "installed" in views.distance(job, "a")
  files.write_json(job.shown / f"{views._digest('a')}.json", {"words": "LPIPS: 0.1"})
  assert views.distance(job, "a") == "LPIPS: 0.1"


def test_what_purifiers_leave(tmp_path: Path) -> None:
  """Purifiers that halve the change, and that also add noise; and one that has not finished."""
  made = finished_job(tmp_path, size=(300, 280))
  view = views.start_view(made.jobs, made.job, "a")
  parts = {kind: read(view.pictures / f"{kind}.png") for kind in ("clean", "protected")}
  assert parts["clean"].shape == (choices.VIEW_PIXELS, choices.VIEW_PIXELS, 3)
  assert (parts["clean"] == read(made.job.clean / "a.png")[86:214, 76:204]).all()
  change = parts["protected"] - parts["clean"]
  noise = np.random.default_rng(1).integers(-9, 10, change.shape)
  entries = [{"file": "clean.png"}, {"file": "protected.png"}]
  record = {"format": marks.FORMAT, "complete": True, "images": entries}
  for name, added in (("jpeg", 0), ("gaussian_blur", noise)):
    made_of = {"clean": parts["clean"], "protected": parts["clean"] + change // 2 + added}
    for kind, pixels in made_of.items():
      images.write_png(view.folder / name / f"{kind}.png", pixels.astype(np.uint8))
    files.write_json(view.folder / name / marks.MANIFEST, record)
  jpeg, blur = views.left_in(view)
  assert jpeg.purifier.name == "jpeg" and jpeg.share == pytest.approx(0.5)
  assert (read(jpeg.amplified) == 128 + 15 * (change // 2)).all()
  assert blur.share == pytest.approx(0.5, abs=0.02)
  commands = choices.commands(view)
  assert [words[-1] for words in commands] == [
    "--option=quality=75", "--option=sigma=1.0", "--model=tiny_ldm",
  ]  # fmt: skip
