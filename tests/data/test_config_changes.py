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


@pytest.mark.parametrize("method", ["advdm", "photoguard_encoder", "random_noise", "udp"])
def test_a_record_without_a_band_had_none(method):
  before = of_before(**{method: FIRST if method == "udp" else {}})
  now = copy.deepcopy(before) | {DEFAULTS: NEWEST_DEFAULTS}
  now["protections"][method] |= {"band": "", "band_sigma": 3.0}
  assert changed(before, now) == []
  now["protections"][method]["band"] = "gaussian"
  assert changed(before, now) == [f"protections.{method}"]


def test_other_methods_and_records_are_left_alone():
  rows = {"aspl": {}, "mist": {"start": "zero"}, "random_noise": {}}
  assert changed(of_before(**rows), record(**rows)) == []
  assert changed({"num_rounds": 6}, {"num_rounds": 6, DEFAULTS: NEWEST_DEFAULTS}) == []
  assert changed(of_before(udp=3), record(udp=3)) == []
  assert changed({"protections": None}, record()) == ["num_rounds"]


def threats(**entries):
  return {"threats": entries, DEFAULTS: NEWEST_DEFAULTS}


def test_threats_whose_defaults_changed():
  """A record of before learned words at 5e-4, clipped and without flips."""
  before = {"learning_rate": 5e-4, "clip_norm": 1.0, "flip": False}
  old = {"threats": {"word": {"method": "textual_inversion"}}, DEFAULTS: 2}
  assert changed(old, threats(word={"method": "textual_inversion"})) == ["threats.word"]
  assert changed(old, threats(word={"method": "textual_inversion"} | before)) == []
  assert changed(threats(textual_inversion={}), threats(textual_inversion={})) == []
  assert changed({"threats": {"lora": {}}, DEFAULTS: 2}, threats(lora={})) == []


@pytest.mark.parametrize(
  ("entry", "rate"),
  [({}, 5e-6), ({"train_text_encoder": True}, 2e-6), ({"rank": 4}, 1e-4)],
)
def test_the_rate_of_dreambooth_is_that_of_what_is_trained(entry, rate):
  assert (
    changed(threats(dreambooth=entry), threats(dreambooth=entry | {"learning_rate": rate})) == []
  )
  old = {"threats": {"dreambooth": entry}, DEFAULTS: 2}
  assert changed(old, threats(dreambooth=entry)) == (["threats.dreambooth"] if rate != 5e-6 else [])


def test_a_record_without_a_clean_set_had_none():
  old = {"data": {"source": "builtin"}, DEFAULTS: NEWEST_DEFAULTS}
  assert changed(old, old | {"data": {"source": "builtin", "clean_set": ""}}) == []
  assert changed(old, old | {"data": {"source": "builtin", "clean_set": "a"}}) == ["data.clean_set"]


@pytest.mark.parametrize("generation", [NEWEST_DEFAULTS + 1, "2", [2], None])
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


def test_the_number_of_resamples_changes_no_value():
  old = {"evaluation": {"loss_draws": 32, "bootstrap": 1000}}
  assert changed(old, {"evaluation": {"loss_draws": 32}}) == []
  assert changed(old, {"evaluation": {"loss_draws": 16}}) == ["evaluation.loss_draws"]


@pytest.mark.parametrize("name", ["demo", "finetuning"])
def test_matrices_of_before_are_gone_on_with(name):
  """Their configs left out what was at the first defaults, and say it now."""
  config = _cli.get_config("impress", name)
  made = config.to_dict()
  for row in {"udp", "eudp"} & made["protections"].keys():
    del made["protections"][row]["start"]
  # IMPRESS's epsilon was not scaled then, and budgets of distances had other units.
  # Nor did models bring what was measured on them.
  had = {"finetuning": ["model.timestep_probs_sha256"]}.get(
    name, ["protections.glaze", "purifiers.impress"]
  )
  assert changed(made, config_changes.recorded(config)) == had


def test_impress_of_before_had_one_epsilon_for_all_sizes():
  lpips = {"perceptual": "lpips_vgg"}
  old = {"purifiers": {"strong": {"method": "impress"} | lpips, "jpeg": {}}}
  assert changed(old, old | {DEFAULTS: 2}) == []
  assert changed(old, old | {DEFAULTS: 3}) == ["purifiers.strong"]
  bare = {"purifiers": {"impress": lpips}, "use_purifiers": ["impress"]}
  literal = {"purifiers": {"impress": lpips | {"scale_epsilon": False}}}
  assert changed(bare, bare | {DEFAULTS: 3}) == ["purifiers.impress"]
  assert changed(bare, literal | {"use_purifiers": ["impress"], DEFAULTS: 3}) == []


def test_a_matrix_of_before_protected_on_its_own_model():
  old, new = record(), record() | {"protection_model": {"path": ""}}
  assert changed(old, new) == []
  new["protection_model"] = {"path": "another"}
  assert changed(old, new) == ["protection_model.path"]


@pytest.mark.parametrize(("kind", "method"), [("protections", "glaze"), ("purifiers", "impress")])
def test_budgets_of_before_were_on_each_distances_own_scale(kind, method):
  def configs(old, new, name=method):
    # IMPRESS's epsilon has another default since, too.
    new = new | ({"scale_epsilon": False} if method == "impress" else {})
    records = {kind: {name: old}}, {kind: {name: new}, DEFAULTS: NEWEST_DEFAULTS}
    return changed(*records)

  offline, lpips = ({"perceptual": n} for n in ("effnet_lite0_distance", "lpips_vgg"))
  differs = [f"{kind}.{method}"]
  # What left out its distance had the offline one, at a budget that means something else now.
  assert configs({}, lpips) == configs({}, offline) == differs
  assert configs(offline, offline) == differs
  assert configs(offline | {"perceptual_budget": 0.1}, offline | {"perceptual_budget": 0.1})
  # LPIPS is the unit.
  assert configs(lpips, lpips) == []
  mine = {"method": method}
  assert configs(mine | lpips, mine | lpips, "mine") == []
  assert configs(mine | offline, mine | offline, "mine") == [f"{kind}.mine"]
  old, now = {kind: {method: {}}}, {kind: {method: offline}, DEFAULTS: NEWEST_DEFAULTS}
  assert changed(old, old) == changed(now, now) == []


def test_chains_of_before():
  parts = ({"name": "impress", "perceptual": "effnet_lite0_distance"}, {"name": "jpeg"})
  record_of = lambda methods: {"purifiers": {"both": {"method": "chain", "methods": methods}}}
  new = record_of(parts) | {DEFAULTS: NEWEST_DEFAULTS}
  assert changed(record_of(parts), new) == ["purifiers.both"]
  jpegs = [{"name": "jpeg"}] * 2
  assert changed(record_of(jpegs), record_of(jpegs) | {DEFAULTS: NEWEST_DEFAULTS}) == []


def test_records_from_before_models_had_choices():
  old = {"seed": 0, "model": {"path": "/models/sd15"}}
  new = {"seed": 0, "model": {"path": "/models/sd15", "vae": "", "prediction_type": ""}}
  assert changed(old, new) == changed(new, old) == []
  new["model"]["prediction_type"] = "epsilon"
  assert changed(old, new) == ["model.prediction_type"]


def test_records_from_before_anything_was_learned_from_pictures():
  old = {"pictures": {"tile_size": 0}, "threat": {"name": "scratch"}}
  new = {"pictures": {"tile_size": 0, "windows": 240, "smallest_window": 112}}
  assert changed(old, old | new) == []
  new["pictures"]["tile_size"] = 64
  assert changed(old, old | new) == ["pictures.tile_size"]
