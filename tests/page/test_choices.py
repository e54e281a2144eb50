"""What is on offer, and the command lines that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.page.made import finished_job
from udp_jax import protections, purifiers, registry
from udp_jax.errors import ConfigError, UserError
from udp_jax.models import places
from udp_jax.page import choices


def test_what_is_offered_exists() -> None:
  assert {one.name for one in choices.METHODS} <= set(protections.available())
  for one in choices.PURIFIERS:
    assert one.name in purifiers.available()
    fields = registry.fields(registry.constructor("udp_jax.purifiers", one.name))
    assert one.options.keys() <= fields.keys()
  assert all(one.paper and one.words for one in choices.METHODS)
  assert [one.levels for one in choices.STRENGTHS] == [4, 8, 16]


def _model(folder: Path) -> None:
  for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
    (folder / part).mkdir(parents=True)
    (folder / part / "config.json").write_text(json.dumps({"_class_name": kind}))


def test_models_are_those_of_the_package_and_of_a_folder(tmp_path: Path) -> None:
  assert list(choices.models(None)) == ["tiny_ldm", "pixel"]
  _model(tmp_path / "models" / "sd15")
  (tmp_path / "models" / "other").mkdir()
  found = choices.models(tmp_path / "models")
  place = str(tmp_path / "models" / "sd15")
  assert list(found) == [place, "tiny_ldm", "pixel"] and found[place] == "sd15"
  assert list(choices.models(Path(place)))[0] == place
  for empty in (tmp_path / "models" / "other", tmp_path / "missing"):
    with pytest.raises(UserError):
      choices.models(empty)


@pytest.mark.parametrize(
  "given", [("/etc", "eudp", "gentle"), ("tiny_ldm", "../x", "gentle"), ("tiny_ldm", "eudp", "16")]
)
def test_only_what_is_on_offer_can_be_chosen(given: tuple[str, str, str]) -> None:
  with pytest.raises(ConfigError):
    choices.settings_of(*given, known=choices.models(None))


def test_the_command_says_what_was_chosen(tmp_path: Path) -> None:
  job = finished_job(tmp_path).job
  (command,) = choices.commands(job)
  assert {"--method=eudp", "--model=tiny_ldm", "--radius_255=8", "--step_size_255=1"} <= set(
    command
  )
  assert not [word for word in command if word.startswith(("--mask", "--config"))]
  masked = choices.protect_command(job, job.settings() | {"masked": True, "config": "demo"})
  assert masked[-2:] == [f"--mask={job.masks}", "--config=demo"]


def test_estimates_come_of_finished_jobs_alone(tmp_path: Path) -> None:
  made = finished_job(tmp_path)
  chosen = made.job.settings()
  assert choices.seconds_per_megapixel(made.jobs.all(), chosen) == pytest.approx(12 / 0.0048)
  other = chosen | {"method": "udp"}
  assert choices.seconds_per_megapixel(made.jobs.all(), other) is None


def test_impress_needs_an_autoencoder(tmp_path: Path) -> None:
  assert choices.view_model(places.FRESH) == "tiny_ldm"
  _model(tmp_path / "sd15")
  assert choices.view_model(str(tmp_path / "sd15")) == str(tmp_path / "sd15")
