"""--radius_255, --step_size_255 and --spare_flat, of every entry point that protects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import experiments
from experiments import _cli
from udp_jax.commands import configs
from udp_jax.errors import ConfigError
from udp_jax.studies import settings

FOLDER = Path(experiments.__file__).parent
ENTRY_POINTS = sorted(p.stem for p in FOLDER.glob("[a-z]*.py"))
# Those that change no picture, or have `protect` do it; `verify` and `evaluate` are told a budget
# to measure against.
PROTECT_NOTHING = {
  *("benchmark", "calibrate", "evaluate", "purify", "sample", "timesteps", "train", "train_ldm"),
  *("page", "verify"),
}
PROTECTING = [name for name in ENTRY_POINTS if name not in PROTECT_NOTHING]
# Where a config is not needed, and the flags that it then takes.
WITHOUT_CONFIG = {"protect": ["--method=random_noise"]}


def _budget(name: str, load_entry_point, *words: str, config: str = "demo"):
  """The config after the flags, as the entry point's main makes it."""
  from absl import flags

  loaded = load_entry_point(f"experiments.{name}")
  loaded.parse(*words)
  experiment = configs.EXPERIMENT[0]
  made = flags.FLAGS.config or _cli.get_config(experiment, config)
  found = {n: flags.FLAGS[n] for n in ("radius_255", "step_size_255", "spare_flat")}
  budget = _cli.Budget(*found.values())  # type: ignore[arg-type]
  return made, budget


def test_entry_points_that_protect_are_known() -> None:
  assert set(PROTECTING) == {"eudp", "impress", "protect", "udp"}


@pytest.mark.parametrize("name", PROTECTING)
@pytest.mark.parametrize("with_config", [True, False])
def test_flags_reach_the_config(name: str, with_config: bool, load_entry_point) -> None:
  words = ["--radius_255=7.5", "--step_size_255=0.5", "--spare_flat=0.25"]
  if with_config:
    words += ["--config=demo:smoke", "--config.step_size_255=1.5"]
  else:
    words += WITHOUT_CONFIG.get(name, [])
  config, budget = _budget(name, load_entry_point, *words)
  config = settings.frozen(config, budget.changes(config))
  assert (config.radius_255, config.step_size_255, config.spare_flat) == (7.5, 0.5, 0.25)


@pytest.mark.parametrize("name", PROTECTING)
@pytest.mark.parametrize(
  ("word", "message"),
  [
    ("--radius_255=0", "--radius_255 is 0.0: it must be from 1 to 255"),
    ("--radius_255=-3", "--radius_255 is -3.0"),
    ("--radius_255=0.9", "changes by whole levels"),
    ("--radius_255=nan", "--radius_255 is nan"),
    ("--radius_255=300", "--radius_255 is 300.0"),
    ("--step_size_255=0", "--step_size_255 is 0.0: it must be above 0"),
    ("--step_size_255=nan", "--step_size_255 is nan"),
    ("--spare_flat=2", "--spare_flat is 2.0: it must be from 0"),
    ("--spare_flat=nan", "--spare_flat is nan"),
  ],
)
def test_values_that_cannot_be_used(name: str, word: str, message: str, load_entry_point) -> None:
  config, budget = _budget(name, load_entry_point, word)
  with pytest.raises(ConfigError, match=message):
    budget.changes(config)


def test_no_flag_changes_nothing(load_entry_point) -> None:
  config, budget = _budget("impress", load_entry_point, "--config=photoguard")
  before = settings.frozen(config).to_dict()
  config = settings.frozen(config, budget.changes(config))
  assert config.to_dict() == before
  assert before["spare_flat"] == 0


def test_rows_that_name_their_own_keep_it_unless_they_are_alone(load_entry_point) -> None:
  words = ["--config=photoguard", "--radius_255=5", "--step_size_255=1"]
  config, budget = _budget("impress", load_entry_point, *words)
  config = settings.frozen(config, budget.changes(config))
  assert config.radius_255 == 5 and config.protections.photoguard_encoder.radius_255 == 7.65
  config, budget = _budget("impress", load_entry_point, *words)
  config = settings.frozen(config, budget.changes(config, row="photoguard_encoder"))
  assert config.protections.photoguard_encoder.radius_255 == 5
  assert config.protections.photoguard_encoder_adaptive.radius_255 == 7.65


def test_a_field_without_a_config_names_the_flag(load_entry_point, capsys) -> None:
  for word, named in (
    ("--config.radius_255=8", "or without a config --radius_255=8"),
    ("--config.model.path=x", "or without a config --model=x"),
  ):
    loaded = load_entry_point("experiments.protect")
    with pytest.raises(SystemExit) as stopped:
      loaded.parse(word)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def _protect(load_entry_point, *words: str) -> int:
  loaded = load_entry_point("experiments.protect")
  return loaded.main(loaded.parse("--noprogress", *words)) or 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  import numpy as np
  from PIL import Image

  (tmp_path / "in").mkdir()
  pixels = np.random.default_rng(0).integers(60, 200, (20, 24, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("config", [[], ["--config=demo_pixels:smoke"]])
@pytest.mark.parametrize("resize", [[], ["--resize"]])
def test_protect_keeps_the_flag_s_budget(
  config: list[str], resize: list[str], folder: Path, load_entry_point, capsys
) -> None:
  from udp_jax.data import manifest, verify

  words = [f"--input={folder / 'in'}", f"--output={folder / 'out'}", "--method=random_noise"]
  assert _protect(load_entry_point, *words, "--radius_255=7.65", *config, *resize) == 0
  made = manifest.read_manifest(folder / "out")
  assert made is not None and made["radius_255"] == 7.65 and made["worst"]["max_abs_255"] == 7
  said = capsys.readouterr().out
  assert "(at most 7 of 7.65 levels of change)" in said
  assert "protected against no model: noise within the budget" in said
  assert verify.verify(folder / "out.work" / "clean", folder / "out", 7).ok
  (hint,) = re.findall(r"^check the budget: python -m experiments.verify (.*)$", said, re.MULTILINE)
  assert hint.endswith("--radius_255=7.65")
  for words in (hint.split(), hint.split()[:-1]):  # Without a budget: what the manifest promises.
    checker = load_entry_point("experiments.verify")
    assert checker.main(checker.parse(*words)) == 0
    assert "(budget 7.65 levels, worst 7)" in capsys.readouterr().out


def test_methods_that_use_a_model_ask_for_one(folder: Path, load_entry_point) -> None:
  words = [f"--input={folder / 'in'}", f"--output={folder / 'out'}"]
  for method in ("eudp", "advdm", "glaze", "udp_matched_noise"):
    with pytest.raises(ConfigError) as raised:
      _protect(load_entry_point, *words, f"--method={method}")
    for choice in ("--model=tiny_ldm", "--model=MODEL", "Stable Diffusion", "--model=pixel"):
      assert choice in str(raised.value)
  assert [path.name for path in folder.iterdir()] == ["in"]
  with pytest.raises(ConfigError, match="unknown method or row 'nope'"):
    _protect(load_entry_point, *words, "--method=nope")
  with pytest.raises(ConfigError, match="udp_matched_noise imitates another row's pictures"):
    _protect(load_entry_point, *words, "--method=udp_matched_noise", "--model=pixel")


@pytest.mark.slow
def test_pixel_is_what_it_was_and_says_what_it_is_worth(
  folder: Path, load_entry_point, capsys
) -> None:
  from udp_jax.data import manifest

  words = [f"--input={folder / 'in'}", f"--output={folder / 'out'}", "--config=folder:smoke"]
  assert _protect(load_entry_point, *words, "--model=pixel", "--method=udp") == 0
  made = manifest.read_manifest(folder / "out")
  assert made is not None and made["against"]["kind"] == "pixel"
  statement = (
    "a small pixel DDPM trained on these pictures: not a model that anyone would fine-tune"
  )
  assert statement in made["against"]["statement"]
  assert f"protected against {statement}" in capsys.readouterr().out
