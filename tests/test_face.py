"""What a notebook needs, from one import that costs nothing."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import udp_jax
from udp_jax import protections
from udp_jax.errors import ConfigError
from udp_jax.models.context import Model


@pytest.fixture
def model(gaussian_model) -> Model:
  import jax

  return Model(gaussian_model, gaussian_model.init(jax.random.key(1)))


def test_importing_it_imports_nothing_else() -> None:
  code = "import sys, udp_jax; print([n for n in ('jax', 'numpy', 'flax') if n in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "[]\n"


def test_its_examples() -> None:
  found = doctest.testmod(udp_jax)
  assert found.attempted >= 6 and not found.failed


@pytest.mark.parametrize("method", ["advdm", "eudp", "random_noise"])
def test_pictures_are_protected_within_the_budget(method, model, pictures) -> None:
  options = {"train_steps": 2, "perturb_steps": 1} if method == "eudp" else {}
  made = udp_jax.protect(pictures, model, method, radius_255=6, num_rounds=4, **options)
  change = np.abs(made.astype(int) - pictures).max(axis=(1, 2, 3))
  assert made.dtype == np.uint8 and made.shape == pictures.shape
  assert (0 < change).all() and change.max() <= 6
  again = udp_jax.protect(pictures, model, method, radius_255=6, num_rounds=4, **options)
  np.testing.assert_array_equal(made, again)
  other = udp_jax.protect(pictures, model, method, radius_255=6, num_rounds=4, seed=1, **options)
  assert (made != other).any()


def test_what_cannot_be_protected_is_said(model, pictures) -> None:
  for given, method, options, message in (
    (pictures[..., :2], "advdm", {}, r"uint8 \(20, 8, 8, 2\): .* \(N, H, W, 3\) are needed"),
    (pictures[0, 0], "advdm", {}, r"pictures are uint8 \(8, 3\)"),
    (pictures / 255, "advdm", {}, r"pictures are float64"),
    (pictures, "advdm", {"output": "out"}, "output is for pictures that are given as paths"),
    (pictures, "advdm", {"strength": "weak"}, "strength is 'weak': it must be gentle, medium"),
    (pictures, "advdm", {"strength": 8, "radius_255": 8}, "give strength or radius_255, not both"),
    ("pictures", "advdm", {}, "output is needed"),
    ("pictures", "advdm", {"output": "out"}, "give the model's name or folder"),
    (pictures, "nope", {}, "unknown protection 'nope'"),
    (pictures, "advdm", {"radius_255": 0.5}, "radius_255 is 0.5"),
    (pictures, "advdm", {"typo": 1}, "no option 'typo'"),
    (pictures, "shuffled_delta", {}, "imitates another row"),
    (pictures, "advdm", {"step_size": 0.1, "step_size_255": 2}, "not both"),
    (pictures, "advdm", {"radius": 0.1}, "give radius or radius_255, not both"),
    (pictures, "advdm", {"batch_size": 0}, "batch_size is 0"),
    (pictures, "advdm", {"prompts": ["a"]}, "1 prompts for 20 pictures"),
    (pictures[:0], "advdm", {}, "there are no pictures"),
    ([1, 2], "advdm", {}, "pictures are list of int: paths, "),
    ([pictures[0], "a.png"], "advdm", {}, "pictures are list of uint8"),
  ):
    with pytest.raises(ConfigError, match=message):
      udp_jax.protect(given, model, method, **options)


def test_steps_may_be_given_on_both_scales(model, pictures) -> None:
  given = {"radius_255": 6, "num_rounds": 1, "start": "zero"}
  small = udp_jax.protect(pictures, model, "advdm", step_size=1 / 255, **given)
  large = udp_jax.protect(pictures, model, "advdm", **given)
  for made, step in ((small, 1), (large, 2)):
    assert np.abs(made.astype(int) - pictures).max() == step


@pytest.mark.parametrize("method", ["advdm", "random_noise"])
def test_grey_pictures_stay_grey(method, model, pictures) -> None:
  grey = np.repeat(pictures[..., :1], 3, axis=-1)
  both = np.concatenate([grey[:1], pictures[1:2]])
  made = udp_jax.protect(both, model, method, radius_255=6, num_rounds=2)
  assert (np.ptp(made[0].astype(int), axis=-1) == 0).all() and np.ptp(made[1], axis=-1).max() > 0
  assert (made[0] != both[0]).any()


@pytest.mark.slow
def test_every_protection_can_be_asked_for(model, pictures) -> None:
  """It is made, or says in one line what it lacks."""
  made = set()
  for method in protections.available():
    try:
      udp_jax.protect(pictures[:2], model, method, num_rounds=1, batch_size=2)
      made.add(method)
    except ConfigError as error:
      assert "\n" not in str(error)
  assert made >= {"advdm", "sds", "random_noise"}


def test_pictures_are_purified(pictures) -> None:
  made = udp_jax.purify(pictures, "gaussian_blur", sigma=1.0)
  assert made.shape == pictures.shape and made.dtype == np.uint8 and (made != pictures).any()
  for given, method, options, message in (
    (pictures, "nope", {}, "unknown purifier 'nope'"),
    (pictures / 255, "jpeg", {}, "pictures are float64"),
    (pictures, "jpeg", {"prompt": "a"}, "a prompt is for methods that denoise"),
  ):
    with pytest.raises(ConfigError, match=message):
      udp_jax.purify(given, method, **options)


@pytest.mark.slow
def test_a_model_with_text_purifies_under_a_prompt(tiny_pipeline_folder) -> None:
  model = udp_jax.load_model(tiny_pipeline_folder)
  images = np.random.default_rng(0).integers(0, 256, (2, *model.model.image_shape), np.uint8)
  made = [udp_jax.purify(images, "diffpure", model, prompt=text) for text in ("", "a cat")]
  assert made[0].shape == images.shape and (made[0] != made[1]).any()


def test_folders_are_verified(tmp_path: Path) -> None:
  for name, value in (("clean", 100), ("protected", 105)):
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / name / "a.png")
  assert udp_jax.verify(tmp_path / "clean", tmp_path / "protected", 5).ok
  assert not udp_jax.verify(tmp_path / "clean", tmp_path / "protected", 4).ok
