"""Captions from metadata.jsonl, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from udp_jax.data import captions
from udp_jax.errors import BadDataError


def test_captions_by_path(tmp_path: Path) -> None:
  assert captions.read_captions(tmp_path) == {}
  lines = (
    '{"file_name": "a/1.png", "text": "a cat\u2028on a mat", "artist": "nobody"}',
    "",
    '{"text": "café", "file_name": "2.jpg"}',
  )
  (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
  found = captions.read_captions(tmp_path)
  assert found == {"a/1.png": "a cat\u2028on a mat", "2.jpg": "café"}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"file_name": "a.png"}', 'line 1 is not an object with "file_name" and "text"'),
    (b'{"file_name": "a.png", "text": "x"}\nnonsense', "line 2 is not an object"),
    (b'["a.png", "x"]', "line 1 is not an object"),
    (b'{"file_name": "a.png", "text": null}', 'line 1: "file_name" and "text" must be texts'),
    (b'{"file_name": "a.png", "text": "\xff"}', "cannot be read as UTF-8 text"),
  ],
)
def test_bad_lines_are_named(content: bytes, message: str, tmp_path: Path) -> None:
  (tmp_path / "metadata.jsonl").write_bytes(content)
  with pytest.raises(BadDataError, match=message):
    captions.read_captions(tmp_path)
