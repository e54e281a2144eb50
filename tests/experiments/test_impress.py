"""`experiments.impress` as a user runs it: finished, killed at random, with mistakes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import _cli
from udp_jax import protections
from udp_jax.studies import rows
from udp_jax.studies.matrix import plan, threatening

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = _cli.config_names("impress")
SEED = 20261122


def words(workdir: Path, model: Path) -> list[str]:
  return [
    *("--config=demo:smoke", f"--workdir={workdir}", f"--config.model.path={model}"),
    *("--rows=photoguard_encoder", "--purifiers=jpeg,gaussian_blur", "--threats=img2img"),
    *("--config.evaluation.features=", "--noprogress"),
  ]


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", CONFIGS)
def test_everything_builds_from_the_config(
  name: str, variant: str, tiny_pipeline, tiny_pipeline_folder: Path
) -> None:
  config = _cli.get_config("impress", f"{name}:{variant}")
  # Prompts of protections need a tokenizer. What was measured on a model is for no other one.
  config.model.path = config.model.timestep_probs or str(tiny_pipeline_folder)
  with config.unlocked():
    config.model.uncond_ids = tuple(tiny_pipeline.tokenizer([""])[0].tolist())
  if name == "full" and not variant:
    config.data.clean_set = "builtin"  # Its surrogates need one.
  wanted = plan.make(config)
  assert wanted.rows[:2] == ("clean", "random_noise") and len(wanted.rows) > 2
  assert wanted.purifiers[0] == "none" and wanted.threats
  assert name in ("finetuning", "galaxies", "transfer") or "impress" in wanted.purifiers
  assert len(wanted.rows) == len(set(wanted.rows))
  for row in wanted.rows[1:]:
    found = rows.settings(config, row)
    method, options = found.method, dict(found.options)
    assert found.num_rounds >= 1 and (
      options["radius_255"] <= config.radius_255 or options.get("l2_radius")
    )
    # The perceptual distance of Glaze needs larger pictures than the test's model has.
    options |= {"perceptual": ""} if method == "glaze" else {}
    if found.probs is not None:
      steps = tiny_pipeline.model.schedule.num_steps
      options["probs"] = found.probs[:steps] / found.probs[:steps].sum()
    protections.build(method, tiny_pipeline.model, options)
  for kind, names in (("purifiers", wanted.purifiers[1:]), ("threats", wanted.threats)):
    for entry in names:
      given = plan.settings(config, kind, entry, threatening.OWN)
      known = {"token_ids": [0], "init_from": 0}
      options = plan.completed(kind, given.method, given.options, known)
      from udp_jax import registry

      constructor = registry.constructor(f"udp_jax.{kind}", given.method)
      registry.check_options(constructor, entry, options)
  if name == "demo":
    assert len(wanted.rows) - 2 >= 6 and len(wanted.purifiers) - 1 >= 5
    assert len(wanted.threats) >= 2


@pytest.mark.parametrize(
  ("name", "rows", "published"),
  [
    (
      "glaze",
      ("glaze", "glaze_adaptive"),
      {"target": "style_transfer", "style_prompt": "Cubism by Picasso", "sample_steps": 50},
    ),
    (
      "full",
      ("fsmg", "aspl"),
      {"trains": "denoiser_and_text", "prior_weight": 1.0, "num_class_images": 200},
    ),
  ],
)
def test_published_forms_of_protections(
  name: str, rows: tuple[str, ...], published: dict[str, object]
) -> None:
  config, smoke = (_cli.get_config("impress", f"{name}:{variant}") for variant in ("", "smoke"))
  for row in rows:
    assert published.items() <= config.protections[row].to_dict().items()
    assert smoke.protections[row].sample_steps == 4 < config.protections[row].sample_steps
    assert smoke.protections[row].get("num_class_images", 4) == 4
    assert smoke.protections[row].get("train_steps", 2) == 2


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--config=demo"], "--config and --workdir are needed"),
    (["--config=nope", "--workdir=w"], "unknown config 'nope' of impress; known: demo, finetuning"),
    (["--config=demo", "--workdir=w", "--purifiers=nope"], "unknown purifier 'nope'; known:"),
    (["--config=glaze", "--workdir=w"], "--config.data.source is needed"),
  ],
)
def test_mistakes_have_one_line_and_exit_code_2(
  given: list[str], message: str, entry_point, tmp_path: Path
) -> None:
  done = entry_point("impress", *given)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and message in done.stderr


def _cells(workdir: Path) -> int:
  """Counts finished cells, in a folder where another process may work.

  `rglob` raises before Python 3.13 where a folder is renamed under it; `os.walk` goes on.
  """
  return sum("cell.json" in files for _, _, files in os.walk(workdir))


@pytest.mark.long
def test_killed_at_random_moments_the_report_is_the_same(
  tiny_pipeline_folder: Path, tmp_path: Path, entry_point, process_environment: dict[str, str]
) -> None:
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  done = entry_point("impress", *words(whole, tiny_pipeline_folder))
  assert done.returncode == 0, done.stderr
  assert f"report: {whole / 'report.html'}\n" in done.stdout
  assert _cells(whole) == 2 * 3 * 3
  generator = random.Random(SEED)
  for _ in range(3):
    process = subprocess.Popen(
      [sys.executable, "-m", "experiments.impress", *words(killed, tiny_pipeline_folder)],
      cwd=ROOT,
      env=process_environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      process_group=0,
    )
    wanted = _cells(killed) + generator.randint(1, 4)
    deadline = time.monotonic() + 300
    while _cells(killed) < wanted:
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.005)
    time.sleep(generator.random() * 0.3)
    os.killpg(process.pid, generator.choice((signal.SIGKILL, signal.SIGTERM)))
    process.wait(60)
    assert not (killed / "report.json").exists()
  done = entry_point("impress", *words(killed, tiny_pipeline_folder))
  assert done.returncode == 0, done.stderr
  for name in ("report.json", "cells.csv"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  pictures = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*.png")}
  assert {p.relative_to(killed): p.read_bytes() for p in killed.rglob("*.png")} == pictures
  assert json.loads((whole / "run.json").read_text())["commit"]


@pytest.mark.slow
def test_failed_cells_have_an_exit_code_of_their_own(
  tiny_pipeline_folder: Path, tmp_path: Path, entry_point
) -> None:
  given = [*words(tmp_path / "run", tiny_pipeline_folder), "--purifiers=", "--threats=lora"]
  done = entry_point("impress", *given, "--config.threats.lora.learning_rate=1e38")
  assert done.returncode == 7, done.stderr
  assert "DivergedError:" in done.stdout
  report = json.loads((tmp_path / "run" / "report.json").read_text())
  assert [f["threat"] for f in report["failures"]] == ["lora"] * len(report["rows"])
  assert (tmp_path / "run" / "report.html").exists()
