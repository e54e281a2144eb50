"""`training_sets_report` on a finished run: the report as files, and as a browser shows it."""

from __future__ import annotations

import json
import math

import pytest

from experiments import _cli
from udp_jax.studies import rows, training_sets_report


def _numbers(value):
  if isinstance(value, dict):
    for item in value.values():
      yield from _numbers(item)
  elif isinstance(value, list):
    for item in value:
      yield from _numbers(item)
  elif isinstance(value, float):
    yield value


@pytest.fixture(scope="module")
def report(smoke) -> dict:
  def refuse(name: str):
    raise AssertionError(f"{name} is not JSON")

  text = (smoke.workdir / "report.json").read_text()
  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
  ("row", "label"),
  [
    ("clean", "Clean"),
    ("random_noise", "Random noise"),
    ("sign_noise", "Sign noise"),
    ("udp", "UDP"),
    ("eudp", "EUDP"),
    ("advdm", "AdvDM"),
    ("udp_matched_noise", "UDP, matched noise"),
    ("eudp_matched_noise", "EUDP, matched noise"),
    ("eudp_shuffled", "EUDP, shuffled"),
  ],
)
def test_labels(row: str, label: str) -> None:
  assert rows.label(_cli.get_config("eudp", "cifar10_small"), row) == label


def test_protections_are_compared_with_noise_of_their_values_where_there_is_some() -> None:
  config = _cli.get_config("eudp", "cifar10_small")
  found = [tuple(pair) for pair in training_sets_report.pairs(config)]
  assert found == [(name, f"{name}_matched_noise", "control") for name in ("udp", "eudp")]
  config.rows = ("clean", "random_noise", "udp")
  assert training_sets_report.pairs(config) == [("udp", "random_noise", "control")]
  config.rows = ("clean", "udp")
  assert training_sets_report.pairs(config) == []


def test_every_row_of_every_config_has_a_label_of_its_own() -> None:
  for name in _cli.config_names("eudp"):
    config = _cli.get_config("eudp", name)
    labels = [rows.label(config, row) for row in config.rows]
    assert len(set(labels)) == len(labels)
    assert not any("_" in label for label in labels)


@pytest.mark.slow
def test_report_holds_what_a_reader_needs(report: dict, smoke) -> None:
  assert [row["label"] for row in report["rows"]] == ["Clean", "Random noise", "UDP", "EUDP"]
  assert [row["control"] for row in report["rows"]] == [True, True, False, False]
  assert report["seeds"] == [0]
  assert report["data"]["train_images"] == 16 and report["data"]["holdout_images"] == 8
  assert report["data"]["source"].startswith("builtin")
  assert report["feature_label"] == "FD-EffLite0"
  assert report["command"] == (
    f"python -m experiments.eudp --config demo_pixels:smoke --workdir={smoke.workdir}"
  )
  assert report["hardware"]["backend"] == "cpu"
  assert report["versions"]["jax"]
  for row in report["rows"]:
    evaluation = smoke.workdir / "threats" / row["name"] / "seed0" / "evaluation.json"
    found = json.loads(evaluation.read_text())
    for column in report["columns"]:
      assert row["metrics"][column["key"]]["mean"] == found[column["key"]]


@pytest.mark.slow
def test_numbers_are_finite_and_curves_complete(report: dict) -> None:
  assert all(math.isfinite(number) for number in _numbers(report))
  clean = report["rows"][0]["metrics"]
  assert clean["psnr"]["mean"] is None  # Infinite: nothing was changed.
  assert (clean["ssim"]["mean"], clean["rms_ratio"]["mean"]) == (1, 0)
  assert set(report["curves"]["victims"]) == {"clean", "random_noise", "udp", "eudp"}
  assert report["curves"]["victims"]["eudp"]["steps"] == [2, 4, 6]
  assert report["curves"]["protection"]["udp"]["round"] == [1, 2, 3, 4, 5, 6]
  assert {n: len(p) for n, p in report["timesteps"].items()} == {"udp": 1000, "eudp": 1000}
  assert report["timesteps"]["udp"] == pytest.approx([1e-3] * 1000)
  assert report["timesteps"]["eudp"][0] > 10 * report["timesteps"]["eudp"][-1]


@pytest.mark.slow
def test_summary_says_what_the_table_says(report: dict) -> None:
  fd = {row["label"]: row["metrics"]["fd_samples"]["mean"] for row in report["rows"]}
  ranked = ", ".join(f"{label} {fd[label]:.0f}" for label in sorted(fd, key=lambda n: -fd[n]))
  assert ranked in report["summary"]
  assert "16 pictures" in report["summary"] and "16 of 255" in report["summary"]


@pytest.mark.slow
def test_page_opens_and_every_picture_loads(smoke, open_in_browser) -> None:
  found = open_in_browser(
    smoke.workdir / "report.html",
    """
    const images = [...document.images];
    const text = document.body.innerText;
    return {count: images.length, broken: images.filter(image => !image.naturalWidth).length,
            figures: document.querySelectorAll("svg").length, text};
    """,
  )
  assert (found["errors"], found["requests"]) == ([], [])
  result = found["result"]
  assert result["broken"] == 0
  # Eight pictures clean, protected and amplified for three rows; samples of four.
  assert result["count"] >= 8 + 4
  assert result["figures"] >= 2
  for word in ("EUDP on real photographs", "Random noise", "FD-EffLite0", "demo_pixels:smoke"):
    assert word in result["text"]
