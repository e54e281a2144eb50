"""What a study refuses before it starts, and what it keeps apart; no compilation here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.studies.conftest import set_field
from udp_jax.data import batches
from udp_jax.errors import UserError
from udp_jax.stages import protect
from udp_jax.stages.rounds import MadeRounds
from udp_jax.studies import build, training_sets

pytestmark = pytest.mark.usefixtures("photographs_once")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("rows", ("clean", "nope"), "unknown method or row 'nope'; known: ace, ace_plus"),
    ("rows", (), "at least one entry"),
    ("rows", ("advdm",), "advdm attacks a trained model: give --model=FOLDER"),
    ("protections.eudp_shuffled.of", None, "eudp_shuffled imitates another row: set config.prot"),
    ("protections.eudp_shuffled.of", "nope", "unknown method or row 'nope'"),
    ("protections.eudp.start", "nope", "unknown start of delta 'nope'"),
    ("protections.eudp.method", "nope", "unknown protection 'nope'"),
    ("protections.eudp.typo", 1, "protection eudp has no option 'typo'"),
    ("threat.seeds", (), "at least one entry"),
    ("threat.name", "nope", "unknown threat 'nope'; known: dreambooth"),
    ("threat.options.decay", "nope", "unknown learning-rate decay 'nope'"),
    ("threat.options.sample_steps", 5000, "sample_steps"),
    ("threat.options.train_steps", 0, "config.threat.options.train_steps is 0; it must be at le"),
    ("num_rounds", 0, "config.num_rounds is 0; it must be at least 1"),
    ("global_batch_size", 0, "global_batch_size is 0"),
    ("radius_255", float("nan"), "radius_255 is nan"),
    ("radius_255", -1.0, "radius_255 is -1"),
    ("num_samples", 1, "num_samples is 1; it must be at least 5"),
    ("checkpoint.every_rounds", 0, "every_rounds is 0"),
    ("performance.dtype", "float8", "unknown dtype 'float8'; known: float32, bfloat16"),
    ("performance.steps_per_call", 0, "steps_per_call is 0"),
    ("model.schedule", "nope", "unknown schedule 'nope'; known: linear"),
    ("model.unet.typo", 1, "typo"),
    ("model.unet.sample_size", 8, "the pictures are 16x16, the model is for 8x8: set --config.da"),
    ("model.path", "/nope", "no folder /nope: a model is a folder"),
    ("evaluation.features", "nope", "unknown feature network 'nope'"),
    ("evaluation.features", "inception_v3", "inception_v3 needs a weight file"),
    ("data.source", "nope", "unknown source 'nope'; use builtin, folder:PATH"),
    ("data.source", "cifar10:/nope.tar.gz", "/nope.tar.gz does not exist"),
    ("data.classes", ("dragon",), "no class dragon; it has "),
    ("data.limit", 3, "cannot hold out 8 of 3 images"),
    ("data.holdout", 0.0, "0 of 24 pictures are held out, judging needs 5 or more: set --conf"),
    ("data.holdout", 24.0, "cannot hold out 24 of 24 images"),
    ("data.holdout", -3.0, "config.data.holdout is -3.0; it must be at least 0"),
  ],
)
def test_mistakes_are_found_before_anything_is_written(
  field: str, value, message: str, config, tmp_path: Path
) -> None:
  set_field(config, field, value)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    study = build.open_study(config, tmp_path / "run", progress=False)
    training_sets.run(study)
  assert raised.value.exit_code == 2
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("row", "joint", "rounds"),
  [("eudp", False, 6), ("eudp", True, 6), ("random_noise", False, 1), ("udp", True, 6)],
)
def test_every_round_is_made_but_for_what_is_drawn_once(
  row: str, joint: bool, rounds: int, config, crops, tmp_path: Path, monkeypatch
) -> None:
  with config.unlocked():
    config.performance.joint_gradients = joint
  asked = []
  made = MadeRounds(None, None, lambda state: (None, None))
  monkeypatch.setattr(protect.rounds, "made", lambda *_: made)
  monkeypatch.setattr(protect.loop, "run_in", lambda *given, **_: asked.append(given[3]))
  study = build.open_study(config, tmp_path, progress=False)
  data = batches.make_batches(crops.images, 8)
  run = study.run("protect", tmp_path, "protect")
  protect.run_rounds(study.row(row), study.model, data, len(crops.images), run)
  assert asked[0].total == rounds == (1 if row == "random_noise" else config.num_rounds)
