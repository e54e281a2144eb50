"""Captioned pictures for a small text-conditioned model, and the pictures held out from it.

There are two kinds of source, both optional: photographs of named classes (any source of
`data.sources`), and a folder of paintings with a subfolder for each artist, from which many square
windows are cut. The photographs in scikit-image and scikit-learn always train the autoencoder; if
neither source is given, the diffusion model trains on them too.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data import sources, windows
from udp_jax.data.image_set import ImageSet, pixels_sha256, split, take

# Caption templates; a training step draws one of them for each picture.
PHOTO_CAPTIONS = ("a photo of {}", "a picture of {}", "a small photo of {}", "{}")
PAINTING_CAPTIONS = (
  "a painting by {}",
  "an oil painting by {}",
  "a detail of a painting by {}",
  "a painting in the style of {}",
)


class Captioned(NamedTuple):
  """Pictures for both training stages.

  Attributes:
    images: uint8 (N, S, S, 3), training pictures of the diffusion model.
    concepts: int32 (N,), row of `captions` for each picture.
    captions: captions of each concept; all have the same number of alternatives.
    extra: uint8 (M, S, S, 3), pictures that only the autoencoder trains on.
    holdout: uint8 (K, S, S, 3), pictures that nothing trains on.
    holdout_concepts: int32 (K,), row of `captions`; -1 if the model has no caption for a picture.
    record: sources, counts and the names of everything held out, for the model's card.
  """

  images: np.ndarray
  concepts: np.ndarray
  captions: tuple[tuple[str, ...], ...]
  extra: np.ndarray
  holdout: np.ndarray
  holdout_concepts: np.ndarray
  record: dict[str, Any]


class _Part(NamedTuple):
  """One source: its training pictures, its held-out pictures, and the captions of its classes."""

  images: np.ndarray
  concepts: np.ndarray
  holdout: np.ndarray
  holdout_concepts: np.ndarray
  captions: list[tuple[str, ...]]
  record: dict[str, Any]


def load(data: Any, image_size: int, seed: int) -> Captioned:
  """Reads the sources of `config.data` (see `experiments/configs/latent.py`).

  Raises:
    MissingDataError, BadDataError, ConfigError: as `data.sources.load`.
  """
  builtin = _photographs("builtin", (), data, image_size, seed)
  parts = []
  if data.photos:
    parts.append(_photographs(data.photos, tuple(data.photo_classes), data, image_size, seed))
  if data.paintings:
    parts.append(_paintings(data, image_size, seed))
  alone = not parts
  parts = parts or [builtin]
  offsets = np.cumsum([0, *(len(part.captions) for part in parts)])

  def numbered(concepts: np.ndarray, offset: int) -> np.ndarray:
    return np.where(concepts < 0, -1, concepts + offset).astype(np.int32)

  learned = np.concatenate([part.images for part in parts])
  record: dict[str, Any] = {"parts": [part.record for part in parts]}
  if not alone:
    record["autoencoder_only"] = builtin.record
  return Captioned(
    images=learned,
    concepts=np.concatenate([numbered(p.concepts, o) for p, o in zip(parts, offsets)]),
    captions=tuple(caption for part in parts for caption in part.captions),
    extra=builtin.images[:0] if alone else builtin.images,
    holdout=np.concatenate([part.holdout for part in parts]),
    holdout_concepts=np.concatenate(
      [numbered(p.holdout_concepts, o) for p, o in zip(parts, offsets)]
    ),
    record=record | {"sha256": pixels_sha256(learned)},
  )


def _photographs(
  spec: str, classes: tuple[str, ...], data: Any, image_size: int, seed: int
) -> _Part:
  """Reads pictures of a labelled source and resizes them to the model's size."""
  found = sources.load(
    spec, image_size=image_size, limit=data.limit or None, seed=seed, classes=classes or None
  )
  train, held = split(found, holdout=data.photo_holdout, seed=seed)
  names = list(found.origin["classes"] or ["picture"])
  present = sorted(set(_labels(found).tolist()))
  captions = [_captions(PHOTO_CAPTIONS, _with_article(names[i], data.words)) for i in present]
  record = {
    "source": _name(spec),
    "classes": [names[i] for i in present],
    "train": len(train.images),
    "held_out": list(held.names),
  }
  rows = [np.searchsorted(present, _labels(part)) for part in (train, held)]
  return _Part(train.images, rows[0], held.images, rows[1], captions, record)


def _paintings(data: Any, image_size: int, seed: int) -> _Part:
  """Cuts square windows of paintings; holds out some paintings, and some artists completely."""
  found = sources.load(data.paintings, seed=seed)
  artists = list(found.origin["classes"] or ["unknown"])
  generator = np.random.default_rng(seed)
  held: list[int] = []
  for label, artist in enumerate(artists):
    members = generator.permutation(np.flatnonzero(_labels(found) == label))
    all_of_them = artist in data.held_out_artists
    held.extend(members if all_of_them else members[: min(data.paintings_held, len(members) - 1)])
  held = sorted(held)
  rest = np.setdiff1d(np.arange(len(found.images)), held)
  train, holdout = take(found, rest), take(found, held)
  known = sorted(set(_labels(train).tolist()))
  captions = [_captions(PAINTING_CAPTIONS, data.words.get(artists[i], artists[i])) for i in known]
  place = {label: row for row, label in enumerate(known)}
  record = {
    "source": _name(data.paintings),
    "classes": [artists[i] for i in known],
    "train": list(train.names),
    "windows_each": data.windows_per_painting,
    "held_out": list(holdout.names),
  }

  def cut(part: ImageSet, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = [
      window
      for painting in part.images
      for window in windows.cut(generator, painting, count, image_size, data.smallest_window)
    ]
    rows = np.array([place.get(int(label), -1) for label in _labels(part)], np.int32)
    shape = (-1, image_size, image_size, 3)
    return np.array(found, np.uint8).reshape(shape), np.repeat(rows, count)

  learned, rows = cut(train, data.windows_per_painting)
  kept, kept_rows = cut(holdout, max(1, data.windows_per_painting // 20))
  return _Part(learned, rows, kept, kept_rows, captions, record)


def _name(spec: str) -> str:
  """Name of a source without its path on this machine."""
  kind, colon, place = spec.rpartition(":")
  return f"{kind}{colon}{PurePath(place).name}"


def _labels(pictures: ImageSet) -> np.ndarray:
  return np.zeros(len(pictures.images), np.int32) if pictures.labels is None else pictures.labels


def _with_article(name: str, words: Any) -> str:
  return words.get(name, f"{'an' if name[:1] in 'aeiou' else 'a'} {name}")


def _captions(templates: tuple[str, ...], name: str) -> tuple[str, ...]:
  return tuple(template.format(name) for template in templates)
