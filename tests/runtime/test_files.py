"""JSON that anyone may have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from udp_jax.data import captions, marks, output
from udp_jax.errors import BadDataError
from udp_jax.runtime import files

DEEP = "[" * 200_000 + "]" * 200_000


def test_deeply_nested_json_is_refused_in_one_line(tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text(f'{{"a": {DEEP}}}')
  with pytest.raises(BadDataError, match="config.json is not readable JSON: .*nested too deeply"):
    files.read_json(tmp_path / "config.json")
  (tmp_path / captions.FILE).write_text(f"{DEEP}\n")
  with pytest.raises(BadDataError, match="line 1"):
    captions.read_captions(tmp_path)
  (tmp_path / marks.MANIFEST).write_text(DEEP)
  (tmp_path / marks.INCOMPLETE).write_text(DEEP)
  assert marks.read_manifest(tmp_path) is None
  output.check_output(tmp_path / "new")
