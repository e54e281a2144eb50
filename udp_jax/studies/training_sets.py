"""A study that makes training sets from one set of pictures and trains a model on each.

  workdir/config.json            settings of the run; a second run with another config is refused
  workdir/clean/ holdout/        the 8-bit reference, and pictures that no model trains on
  workdir/protected/<row>/       protected files and manifest.json
  workdir/stages/protect_<row>/  checkpoints and metrics.jsonl
  workdir/threats/<row>/seed<k>/ checkpoints, metrics.jsonl, model/, samples/, evaluation.json
  workdir/report.json .html      written last
Every part is resumable; parts that are on disk are not made again. Several processes can run a
study together in a working folder that they share; process 0 evaluates.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax import threats
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError
from udp_jax.models import features
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.runtime import files, processes
from udp_jax.stages import evaluate as evaluate_lib
from udp_jax.stages import sample
from udp_jax.studies import build, settings
from udp_jax.studies import rows as rows_lib
from udp_jax.studies.build import Study

_log = logging.getLogger(__name__)

# Precision and recall use the third nearest neighbour.
_MIN_HOLDOUT = 5


class _Measured(NamedTuple):
  """What is measured for one row and seed.

  Attributes:
    images: (N, H, W, C) uint8, the training set.
    params: of the model trained on it.
    samples: (M, H, W, C) uint8, of that model.
    name: row and seed, for progress.
    radius_255: budget of the row in 8-bit levels.
  """

  images: np.ndarray
  params: Params
  samples: np.ndarray
  name: str
  radius_255: float


def _judge(judge: evaluate_lib.Judge, folder: Path, measured: _Measured) -> None:
  files.write_json(folder / "evaluation.json", judge(**measured._asdict()))


class Results(NamedTuple):
  """The results of a study.

  Attributes:
    rows: one for each training set, {"name", "metrics"}, as in the report; empty without
      evaluation.
    model: the attacked model.
    feature_label: name of the Frechet distance; "" without evaluation.
  """

  rows: list[dict[str, Any]]
  model: DiffusionModel
  feature_label: str


def run(study: Study, *, evaluate: bool = True) -> Results:
  """Protects every row of `config.rows`; with `evaluate` also trains, samples and measures.

  Args:
    study: from `build.open_study`.
    evaluate: whether to train a model on every row and measure it.

  Raises:
    UserError, Preempted: as the stages.
  """
  config, workdir, model = study.config, study.workdir, study.model
  rows = list(dict.fromkeys(config.rows))
  for row in rows:
    if row != CLEAN:  # Checked before hours of work on the rows above it.
      build.build_protection(config, row, model)
  threat = threats.build(config.threat.name, model.model, dict(config.threat.options))
  trainer = build.build_trainer(study)
  if config.threat.options.get("sample_steps", 1) > len(model.model.schedule.alphas_cumprod):
    raise ConfigError("config.threat.options.sample_steps: more than the schedule has")
  extractor = None
  if evaluate:  # Loaded before hours of work, because the weights may be missing.
    weights = config.evaluation.weights or None
    extractor = features.load(config.evaluation.features, weights=weights)
  clean, holdout = build.load_data(config)
  build.check_sizes(config, clean, model.model)
  if evaluate and len(holdout.images) < _MIN_HOLDOUT:
    raise ConfigError(
      f"{len(holdout.images)} of {len(clean.images) + len(holdout.images)} pictures are held out, "
      f"judging needs {_MIN_HOLDOUT} or more: set --config.data.holdout, or give --noevaluate"
    )
  settings.check(config, workdir, clean)
  build.write_pictures(clean, workdir / "clean")
  if len(holdout.images):
    build.write_pictures(holdout, workdir / "holdout")
  _log.info("%d pictures to protect, %d held out", len(clean.images), len(holdout.images))
  training_sets = {
    row: clean.images if row == CLEAN else build.protect_row(study, row, clean) for row in rows
  }
  if extractor is None:
    return Results([], model.model, "")
  judge = evaluate_lib.Judge(
    config, clean.images, holdout.images, model.model, extractor, progress=study.progress
  )
  results: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
  for seed in config.threat.seeds:
    for row, images in training_sets.items():
      folder = workdir / "threats" / row / f"seed{seed}"
      name = f"{row} seed {seed}"
      if not processes.from_main(
        partial(evaluate_lib.is_judged, folder / "evaluation.json"), f"look at {name}"
      ):
        # Every row uses the same draws, so the trained models differ only by their training set.
        every = config.checkpoint.every_steps
        run = study.run(f"threat/{seed}", folder, f"train {name}", checkpoint_every=every)
        trained = build.train_model(study, images, trainer, run)
        samples = sample.sample(
          threat.sample,
          trained,
          folder / "samples",
          run.drawing("sample").at(folder, f"sample {name}"),
          num_samples=config.num_samples,
          asked=sample.Asked(record={"method": "samples", "row": row, "seed": seed}),
        )
        radius_255 = rows_lib.row_radius_255(config, row)
        measured = _Measured(images, trained, samples, name, radius_255)
        processes.from_main(partial(_judge, judge, folder, measured), f"judge {name}")
      results[row].append(
        processes.from_main(partial(files.read_json, folder / "evaluation.json"), name)
      )
  table = [{"name": row, "metrics": evaluate_lib.spread(found)} for row, found in results.items()]
  return Results(table, model.model, extractor.label)
