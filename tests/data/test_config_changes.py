"""What counts as a change between two configs that were written down."""

from __future__ import annotations

import copy

import pytest
from ml_collections import ConfigDict

from experiments import _cli
from udp_jax.data import config_changes
from udp_jax.data.config_changes import DEFAULTS, NEWEST_DEFAULTS, changed

FIRST = {"train_steps": 30, "perturb_steps": 2, "start": "sign", "learning_rate": 8e-4}


def record(**rows):
  """A record of now."""
  return {"num_rounds": 6, "protections": rows, DEFAULTS: NEWEST_DEFAULTS}


def of_before(**rows):
  """A record of when the defaults were the first ones, which it does not say."""
  return {"num_rounds": 6, "protections": rows}


@pytest.mark.parametrize("row", [{"udp": {}}, {"eudp": {}}, {"mine": {"method": "eudp"}}])
def test_what_a_record_leaves_out_is_at_the_defaults_of_its_time(row):
  (name, entry), *_ = row.items()
  changes = [f"protections.{name}"]
  # A run of before is gone on with by a config that says what was meant, and by no other.
  assert changed(of_before(**row), record(**{name: entry | FIRST})) == []
  assert changed(of_before(**row), record(**row)) == changes
  partly = entry | {"train_steps": 5, "learning_rate": 1e-4}
  explicit = partly | {"start": "sign", "perturb_steps": 2}
  assert changed(of_before(**{name: partly}), record(**{name: explicit})) == []
  assert changed(of_before(**{name: partly}), record(**{name: partly})) == changes
  # A run of now that leaves them out is none of before that said the first ones.
  now = entry | {"train_steps": 60, "perturb_steps": 4, "start": "zero", "learning_rate": 1e-3}
  assert changed(record(**row), record(**{name: now})) == []
  assert changed(record(**row), of_before(**{name: now})) == []
  assert changed(record(**row), record(**{name: entry | FIRST})) == changes
  assert changed(of_before(**row), of_before(**{name: entry | FIRST})) == []


def test_a_row_may_be_the_bare_name_of_a_method():
  old, new = of_before() | {"rows": ["udp"]}, record() | {"rows": ["udp"]}
  assert changed(old, new) == ["protections.udp"]
  assert changed(old, record(udp=FIRST) | {"rows": ["udp"]}) == []
  assert changed(old, record() | {"rows": ["advdm"]}) == []


def test_other_methods_and_records_are_left_alone():
  rows = {"aspl": {}, "mist": {"start": "zero"}, "random_noise": {}}
  assert changed(of_before(**rows), record(**rows)) == []
  assert changed({"num_rounds": 6}, {"num_rounds": 6, DEFAULTS: NEWEST_DEFAULTS}) == []
  assert changed(of_before(udp=3), record(udp=3)) == []
  assert changed({"protections": None}, record()) == ["num_rounds"]


@pytest.mark.parametrize("generation", [3, "2", [2], None])
def test_a_generation_that_is_not_known(generation):
  assert changed(record() | {DEFAULTS: generation}, record()) == [DEFAULTS]


def test_nothing_is_written_into_the_records():
  old, new = of_before(udp={}), record(udp={})
  kept = copy.deepcopy((old, new))
  changed(old, new)
  assert (old, new) == kept


def test_a_manifests_config_and_that_of_a_run():
  config = ConfigDict({"num_rounds": 6, "protections": {"udp": {"start": "sign"}}})
  made = config_changes.recorded(config)
  assert config_changes.changed_from_published(made, config_changes.recorded(config)) == []
  # The first defaults are the other ones.
  del made[DEFAULTS]
  assert config_changes.changed_from_published(made, config_changes.recorded(config)) == [
    "protections.udp"
  ]


@pytest.mark.parametrize("name", ["demo", "finetuning", "full"])
def test_matrices_of_before_are_gone_on_with(name):
  """Their configs left out what was at the first defaults, and say it now."""
  config = _cli.get_config("impress", name)
  made = config.to_dict()
  for row in {"udp", "eudp"} & made["protections"].keys():
    del made["protections"][row]["start"]
    if name == "full":
      del made["protections"][row]["learning_rate"]
  assert changed(made, config_changes.recorded(config)) == []


def test_records_from_before_models_had_choices():
  old = {"seed": 0, "model": {"path": "/models/sd15"}}
  new = {"seed": 0, "model": {"path": "/models/sd15", "vae": "", "prediction_type": ""}}
  assert changed(old, new) == changed(new, old) == []
  new["model"]["prediction_type"] = "epsilon"
  assert changed(old, new) == ["model.prediction_type"]
