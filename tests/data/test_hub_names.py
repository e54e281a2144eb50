"""Names on the Hugging Face Hub, told from paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from udp_jax.data import hub_names
from udp_jax.data.hub_names import HubName


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("path", "wanted"),
  [
    ("owner/name", HubName("owner/name")),
    ("owner/name@fp16", HubName("owner/name", "fp16")),
    ("owner/name@refs/pr/3", HubName("owner/name", "refs/pr/3")),
    ("https://huggingface.co/owner/name", HubName("owner/name")),
    ("https://huggingface.co/owner/name/tree/main", HubName("owner/name", "main")),
    ("https://hf.co/owner/name/", HubName("owner/name")),
    ("tiny_ldm", None),
    ("/owner/name", None),
    ("./owner/name", None),
    ("../name", None),
    ("~/name", None),
    ("owner/name/part", None),
    ("owner/name.safetensors", None),
    ("https://example.org/owner/name", None),
    ("", None),
  ],
)
def test_spellings(path: str, wanted: HubName | None) -> None:
  assert hub_names.parse(path) == wanted


def test_what_is_here_comes_first(here: Path) -> None:
  (here / "owner" / "name").mkdir(parents=True)
  (here / "owner" / "name@main").mkdir()
  assert hub_names.parse("owner/name") is None and hub_names.parse("owner/name@main") is None
  # A mistyped path is not asked for, unless a revision says that it is a name.
  assert hub_names.parse("owner/nome") is None
  assert hub_names.parse("owner/nome@main") == HubName("owner/nome", "main")


def test_pinned() -> None:
  commit = "0123456789abcdef" * 2 + "01234567"
  assert hub_names.is_pinned(f"owner/name@{commit}")
  for other in ("owner/name", "owner/name@main", f"/a/owner/name@{commit}", commit, ""):
    assert not hub_names.is_pinned(other)
