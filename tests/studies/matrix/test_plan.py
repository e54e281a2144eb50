"""What is to be done, in which order, and where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import _cli
from experiments.configs import matrix as building
from udp_jax.errors import ConfigError
from udp_jax.studies.matrix import plan
from udp_jax.studies.matrix.plan import Cell


@pytest.fixture
def config():
  config = building.matrix("Plans")
  config.rows, config.seeds = ("eudp", "clean", "eudp"), (3, 1)
  config.purifiers.strong = {"method": "jpeg", "quality": 20}
  config.use_purifiers, config.use_threats = ("strong", "none"), ("img2img",)
  config.threats.img2img = {"strength": 0.5, "prompt": "a cat"}
  return config


def test_what_everything_is_read_against_comes_first_and_once(config) -> None:
  found = plan.make(config)
  assert found.rows == ("clean", "random_noise", "eudp")
  assert found.purifiers == ("none", "strong")
  assert (found.threats, found.seeds) == (("img2img",), (3, 1))
  chosen = plan.make(config, rows=("mist",), purifiers=(), threats=("lora", "lora"))
  assert chosen.rows == ("clean", "random_noise", "mist")
  assert (chosen.purifiers, chosen.threats) == (("none",), ("lora",))


def test_cells_of_a_plan_in_their_order(config) -> None:
  asked = plan.make(config)
  cells = list(plan.picture_cells(asked))
  assert cells[:3] == [Cell("clean", "none"), Cell("clean", "strong"), Cell("random_noise", "none")]
  assert len(set(cells)) == len(cells) == 3 * 2
  edits = list(plan.threat_cells(asked, "img2img"))
  assert [cell.pictures for cell in edits] == 2 * cells
  assert [cell.seed for cell in edits] == 6 * [3] + 6 * [1]


def test_places_and_names() -> None:
  work = Path("w")
  assert plan.folder_of(Cell("clean", "none"), work) == Path("w/clean")
  assert plan.folder_of(Cell("eudp", "none"), work) == Path("w/protected/eudp")
  edit = Cell("eudp", "jpeg", "img2img", 3)
  assert plan.folder_of(edit, work) == Path("w/purified/eudp/jpeg/pictures")
  assert edit.folder(work) == Path("w/threats/eudp/jpeg/img2img/seed3")
  assert (edit.name, edit.pictures.name) == ("eudp / jpeg / img2img / seed 3", "eudp / jpeg")


def test_settings_are_the_constructor_s_and_the_matrix_s(config) -> None:
  found = plan.settings(config, "purifiers", "strong")
  assert found == plan.Settings("jpeg", {"quality": 20}, {})
  found = plan.settings(config, "threats", "img2img", ("prompt", "mask"))
  assert found == plan.Settings("img2img", {"strength": 0.5}, {"prompt": "a cat"})
  assert plan.settings(config, "purifiers", "resize").options == {}


def test_what_a_constructor_asks_for_is_given(config) -> None:
  known = {"cond": 1, "nobody_asks_for_this": 2}
  assert plan.completed("purifiers", "jpeg", {"quality": 20}, known) == {"quality": 20}
  assert plan.completed("purifiers", "diffpure", {}, known) == {"cond": 1}
  assert plan.completed("purifiers", "diffpure", {"cond": 5}, known) == {"cond": 5}


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("seeds", (), "config.seeds needs at least one entry"),
    ("num_samples", 3, "config.num_samples is 3"),
    ("radius_255", 0.5, "config.radius_255 is 0.5"),
    ("use_purifiers", ("soap",), "unknown purifier 'soap'; known: .*strong"),
    ("use_threats", ("theft",), "unknown threat 'theft'; known: .*img2img"),
  ],
)
def test_plans_that_cannot_be_made(field: str, value, message: str, config) -> None:
  config[field] = value
  with pytest.raises(ConfigError, match=message):
    plan.make(config)


def test_surrogates_of_published_attacks_need_pictures_apart() -> None:
  config = _cli.get_config("impress", "full")
  config.data.source = "folder:subject"
  with pytest.raises(ConfigError, match=r"config.data.clean_set is missing: aspl trains on"):
    plan.make(config)
  plan.make(config, rows=("udp",))
  config.data.clean_set = "./subject/"
  with pytest.raises(ConfigError, match=r"config.data.clean_set is config.data.source"):
    plan.make(config)
  config.data.clean_set = "more"
  plan.make(config)
  config.protections.aspl.clean_set = "subject"
  with pytest.raises(ConfigError, match=r"config.protections.aspl.clean_set is config.data.source"):
    plan.make(config)
  plan.make(_cli.get_config("impress", "full:smoke"))
