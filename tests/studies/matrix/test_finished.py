"""A finished matrix that nobody ran: the report needs nothing but what `Finished` holds."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.configs import matrix as building
from udp_jax.data import image_set
from udp_jax.errors import ConfigError
from udp_jax.metrics.usefulness import Usefulness
from udp_jax.models import factory
from udp_jax.studies import settings, usefulness
from udp_jax.studies.matrix import catalogue, cells, plan, results
from udp_jax.studies.matrix.finished import Finished

GENERATOR = np.random.default_rng(0)
LOSSES = {
  (row, purifier): GENERATOR.normal(size=6) + 10 * (row == "eudp") * (purifier == "none")
  for row in ("clean", "random_noise", "eudp")
  for purifier in ("none", "jpeg")
}


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
  """Three rows, one purifier and no threats, with the losses above in their files."""
  config = building.matrix("By hand")
  asked = plan.make(config, rows=("eudp",), purifiers=("jpeg",), threats=())
  for cell in plan.picture_cells(asked):
    losses = LOSSES[cell.row, cell.purifier]
    cells.write(cell, tmp_path, {"denoising_loss": losses})
  pictures = image_set.ImageSet(np.zeros((6, 8, 8, 3), np.uint8), [str(i) for i in range(6)])
  clean = image_set.finish(pictures, "by hand")
  holdout = image_set.take(clean, [0, 1])
  networks = {"perceptual": {"label": "none"}}
  metrics = catalogue.metrics("LPIPS", "FID", 4)
  return Finished(config, asked, clean, holdout, metrics, {}, networks, {"purify": 1.0}, 0, config)


def test_the_report_is_that_of_the_files(finished: Finished, tmp_path: Path) -> None:
  report = results.build(tmp_path, finished)
  assert report["data"]["pictures"] == 6 and report["data"]["holdout"] == 2
  assert report["networks"] == finished.networks and report["failures"] == []
  (table,) = report["tables"]
  assert [metric["key"] for metric in table["metrics"]] == ["denoising_loss"]
  found = {(e["row"], e["purifier"]): e["metrics"]["denoising_loss"] for e in table["cells"]}
  assert found.keys() == LOSSES.keys()
  for place, losses in LOSSES.items():
    assert found[place]["mean"] == pytest.approx(losses.mean())
    assert found[place]["std"] == pytest.approx(losses.std(ddof=1))
  (line,) = [x for x in table["survival"]["denoising_loss"] if x["row"] == "eudp"]
  mean = {place: losses.mean() for place, losses in LOSSES.items()}
  effect = mean["eudp", "none"] - mean["clean", "none"]
  left = mean["eudp", "jpeg"] - mean["clean", "jpeg"]
  assert line["worst"] == pytest.approx(left / effect)


def test_a_cell_that_is_missing_is_a_failure(finished: Finished, tmp_path: Path) -> None:
  cells.write_failure(plan.Cell("eudp", "jpeg"), tmp_path, "ValueError: no luck")
  report = results.build(tmp_path, finished)
  (failure,) = report["failures"]
  assert (failure["row"], failure["purifier"]) == ("eudp", "jpeg")
  assert failure["error"] == "ValueError: no luck"
  (entry,) = [e for e in report["tables"][0]["cells"] if e["error"]]
  assert entry["metrics"] == {}


def test_rows_of_a_transfer_are_read_by_the_model_they_are_made_on(
  finished: Finished, tiny_model, tmp_path: Path
) -> None:
  """A measured distribution is of that model, and of no other."""
  places = [tmp_path / "made_on", tmp_path / "tested_on"]
  for place, factor in zip(places, (1.0, 2.0)):
    params = jax.tree.map(lambda x, by=factor: by * x, tiny_model.params)
    factory.save(place, tiny_model.model, tiny_model.config, params)
  made_on, tested_on = map(str, places)
  found = Usefulness(np.array([0, 10, 30, 50]), np.ones((2, 3)))
  asked = usefulness.describe(found, made_on, tiny_model.model, finished.clean, {})
  usefulness.write(tmp_path / "measured", asked)
  config = finished.config
  config.protections.eudp = {"probs": "measured"}
  config.model.update({"path": tested_on, "timestep_probs": str(tmp_path / "measured")})
  config.protection_model.path = made_on
  with pytest.raises(ConfigError, match="was measured on another model"):
    results.build(tmp_path, finished._replace(protecting=config))
  protecting = settings.frozen(config, {"model.path": made_on})
  report = results.build(tmp_path, finished._replace(protecting=protecting))
  assert report["model"] == tested_on and report["protection_model"] == made_on
  assert report["rows"][2]["options"]["probs"] == "measured"
