"""A study of pictures of several sizes against a latent model, from files to report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from experiments import _cli
from udp_jax.data import verify
from udp_jax.errors import ConfigError
from udp_jax.report import html, text
from udp_jax.studies import pictures

# Compiling a round through an autoencoder: `make test_slow`.
pytestmark = pytest.mark.long

ROWS = ("clean", "random_noise", "eudp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three pictures: larger than a tile, smaller than one, and one with transparency."""
  folder = tmp_path_factory.mktemp("pictures")
  generator = np.random.default_rng(0)
  for name, shape in {"wide": (20, 37, 3), "dot": (5, 3, 3), "clear": (18, 17, 4)}.items():
    pixels = generator.integers(40, 200, shape, np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
  (folder / "metadata.jsonl").write_text('{"file_name": "wide.png", "text": "a photo of a cat"}\n')
  return folder


@pytest.fixture(scope="module")
def config(folder, tiny_pipeline_folder):
  config = _cli.get_config("eudp", "tiny_ldm:smoke")
  with config.unlocked():
    config.rows = ROWS
    config.data.source = str(folder)
    config.data.prompt = "a photo"
    config.model.path = str(tiny_pipeline_folder)
    config.pictures.tile_size = 16
    config.evaluation.loss_images = 4
  return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study") / "run"
  report, assets = pictures.run(config, workdir, progress=False)
  return workdir, report, assets


def test_every_file_is_whole_and_within_the_budget(finished, folder):
  workdir, _, _ = finished
  for row in ROWS[1:]:
    found = verify.verify(workdir / "clean", workdir / "protected" / row, 8.0)
    assert found.ok and found.checked == 3
    with Image.open(workdir / "protected" / row / "clear.png") as picture:
      assert picture.mode == "RGBA" and picture.size == (17, 18)


def test_the_report_has_every_number(finished):
  _, report, assets = finished
  assert [row["name"] for row in report["rows"]] == list(ROWS)
  assert [row["control"] for row in report["rows"]] == [True, True, False]
  for row in report["rows"]:
    means = {name: metric["mean"] for name, metric in row["metrics"].items()}
    assert means["loss_uniform"] > 0 and means["loss_early"] > 0
    assert (means["psnr"] is None) == (row["name"] == "clean")
  assert 0 < report["rows"][2]["metrics"]["max_abs_255"]["mean"] <= 8
  assert assets["clean"].shape == assets["protected"]["eudp"].shape == (3, 192, 192, 3)
  assert "EUDP" in html.render(report, assets)
  assert "Denoising" in text.format_table(report)
  json.dumps(text.jsonable(report))


def test_a_second_run_makes_nothing_again(finished, config, monkeypatch):
  workdir, report, _ = finished
  monkeypatch.setattr(
    "udp_jax.stages.protect.run_rounds", lambda *_, **__: pytest.fail("made again")
  )
  again, _ = pictures.run(config, workdir, progress=False)
  assert text.jsonable(again["rows"]) == text.jsonable(report["rows"])


def test_other_captions_are_another_run(finished, config):
  workdir, _, _ = finished
  changed = config.copy_and_resolve_references()
  changed.data.prompt = "a painting"
  with pytest.raises(ConfigError, match="holds a run with another config"):
    pictures.run(changed, workdir, progress=False)
