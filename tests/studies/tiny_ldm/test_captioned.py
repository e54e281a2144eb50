"""Captioned pictures: what is learned, under which words, and that held-out pictures stay out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.configs import latent
from udp_jax.data import images
from udp_jax.studies.tiny_ldm import captioned

# A grey level for every painting: a window of it tells where it was cut from.
ARTISTS = {"ann": (10, 20, 30, 40), "monet": (110, 120), "vangogh": (210, 220, 230)}


@pytest.fixture(scope="module")
def loaded(paintings: Path) -> captioned.Captioned:
  return captioned.load(_data(paintings=f"folder:{paintings}"), 8, seed=0)


@pytest.fixture(scope="module")
def paintings(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("paintings")
  for artist, levels in ARTISTS.items():
    for level in levels:
      images.write_png(folder / artist / f"{level}.png", np.full((40, 40, 3), level, np.uint8))
  return folder


def _data(**fields):
  data = latent.training("test").data
  data.update({"windows_per_painting": 20, "smallest_window": 16} | fields)
  return data


def _levels(pictures: np.ndarray) -> set[int]:
  return set(np.unique(pictures).tolist())


def test_paintings_are_held_out_whole(loaded: captioned.Captioned) -> None:
  found = loaded
  learned, held = _levels(found.images), _levels(found.holdout)
  assert not learned & held
  assert learned | held == {level for levels in ARTISTS.values() for level in levels}
  assert held > set(ARTISTS["monet"])
  # Two of each of the others, or as many as leave one.
  assert len(held & set(ARTISTS["ann"])) == len(held & set(ARTISTS["vangogh"])) == 2
  assert found.images.shape == (3 * 20, 8, 8, 3)
  assert found.record["parts"][0]["held_out"] == sorted(found.record["parts"][0]["held_out"])
  assert len(found.record["parts"][0]["held_out"]) == len(held)


def test_captions_name_the_artist(loaded: captioned.Captioned) -> None:
  found = loaded
  assert [alternatives[0] for alternatives in found.captions] == [
    "a painting by ann",
    "a painting by vincent van gogh",
  ]
  for levels, concept in ((ARTISTS["ann"], 0), (ARTISTS["vangogh"], 1)):
    of_artist = np.isin(found.images[:, 0, 0, 0], levels)
    assert set(found.concepts[of_artist]) == {concept}
  # The model has no words for an artist who is held out.
  of_monet = np.isin(found.holdout[:, 0, 0, 0], ARTISTS["monet"])
  assert set(found.holdout_concepts[of_monet]) == {-1}


def test_photographs_and_paintings_are_numbered_apart(paintings: Path, tmp_path: Path) -> None:
  pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
  labels = np.arange(20) % 4
  classes = np.array(["automobile", "bird", "horse", "owl"])
  np.savez(tmp_path / "photos.npz", images=pixels, labels=labels, classes=classes)
  data = _data(paintings=f"folder:{paintings}", photos=f"npz:{tmp_path / 'photos.npz'}")
  found = captioned.load(data, 16, seed=0)
  first = [alternatives[0] for alternatives in found.captions]
  assert first == [
    "a photo of a car",
    "a photo of a horse",
    "a painting by ann",
    "a painting by vincent van gogh",
  ]
  # Names of sources, not places: the record goes into the model's folder.
  sources = [part["source"] for part in found.record["parts"]]
  assert sources == ["npz:photos.npz", f"folder:{paintings.name}"]
  assert all(len(alternatives) == 4 for alternatives in found.captions)
  counts = np.bincount(found.concepts, minlength=4)
  assert counts[:2].sum() == 8 and counts[2:].tolist() == [40, 20]
  assert (found.concepts >= 0).all() and len(found.concepts) == len(found.images)
  # The photographs of the package teach the autoencoder only.
  assert len(found.extra) > 100 and found.extra.shape[1:] == (16, 16, 3)


@pytest.mark.slow
def test_without_paths_the_builtin_photographs_are_learned() -> None:
  data = _data(limit=40)
  found = captioned.load(data, 16, seed=0)
  assert len(found.extra) == 0
  assert len(found.images) + len(found.holdout) <= 40
  assert "a photo of a cat" in {alternatives[0] for alternatives in found.captions}
  same = captioned.load(data, 16, seed=0)
  np.testing.assert_array_equal(found.images, same.images)
