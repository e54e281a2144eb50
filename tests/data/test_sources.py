"""Specs of sources: which loader each of them reaches, and with what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from udp_jax.data import builtin, cifar, folder, npz, prepared, sources, windows
from udp_jax.errors import ConfigError, MissingDataError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
  """(loader, place, options) of every call; nothing is loaded."""
  seen: list[tuple] = []
  for module, name in (
    (builtin, "load_builtin"), (folder, "load_folder"), (npz, "load_npz"),
    (windows, "load_windows"),
    (cifar, "load_cifar10"), (prepared, "load_tfds"),
  ):  # fmt: skip
    monkeypatch.setattr(
      module, name, lambda *place, _name=name, **options: seen.append((_name, *place, options))
    )
  return seen


OPTIONS = {"image_size": 8, "limit": 3, "seed": 5, "classes": ("a",)}


@pytest.mark.parametrize(
  ("spec", "loader", "place", "more"),
  [
    ("builtin", "load_builtin", None, {}),
    ("folder:in", "load_folder", Path("in"), {"strict": True}),
    ("windows:in", "load_windows", Path("in"), {"strict": True}),
    ("npz:a.b", "load_npz", Path("a.b"), {}),
    ("a/b.npz", "load_npz", Path("a/b.npz"), {}),
    ("cifar10:in", "load_cifar10", Path("in"), {"part": "train"}),
    ("cifar10-test:in", "load_cifar10", Path("in"), {"part": "test"}),
    ("tfds:mnist:train@here", "load_tfds", "mnist:train@here", {}),
  ],
)
def test_each_kind_has_its_loader(spec: str, loader: str, place, more: dict, asked) -> None:
  sources.load(spec, **OPTIONS, strict=True)
  (call,) = asked
  assert call[0] == loader and call[-1] == OPTIONS | more
  assert call[1:-1] == (() if place is None else (place,))


def test_a_folder_needs_no_word(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  sources.load(tmp_path, classes="a")
  assert asked[0][:2] == ("load_folder", tmp_path) and asked[0][2]["classes"] == ("a",)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "in").mkdir()
  sources.load("folder:~/in")
  sources.load("~/in")
  assert [call[1] for call in asked[1:]] == [tmp_path / "in"] * 2


@pytest.mark.parametrize(
  ("spec", "error", "message"),
  [
    ("nope", ConfigError, "unknown source 'nope'; use builtin, folder:PATH"),
    ("some/where", MissingDataError, "some/where: no such folder"),
    ("web:x", ConfigError, "unknown source 'web:x'"),
  ],
)
def test_what_is_no_source(spec: str, error: type, message: str) -> None:
  with pytest.raises(error, match=message):
    sources.load(spec)


def test_a_file_is_no_folder_and_no_size_is_none(tmp_path: Path) -> None:
  (tmp_path / "a.png").touch()
  with pytest.raises(MissingDataError, match="is a file, not a folder"):
    sources.load(tmp_path / "a.png")
  with pytest.raises(ConfigError, match="image_size must be at least 1 or None, got 0"):
    sources.load("builtin", image_size=0)


def test_arrays_come_through(tmp_path: Path) -> None:
  pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
  np.savez(tmp_path / "a.npz", images=pixels)
  np.testing.assert_array_equal(sources.load(tmp_path / "a.npz").images, pixels)
