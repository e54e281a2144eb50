"""JSON that anyone may have written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from udp_jax.data import captions, marks, output
from udp_jax.errors import BadDataError, MissingDataError
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


def test_files_are_checked_before_they_are_read(tmp_path: Path) -> None:
  path = tmp_path / "weights"
  path.write_bytes(b"12")
  digest = hashlib.sha256(b"12").hexdigest()
  assert files.read_checked(path, digest.upper()) == b"12"
  with pytest.raises(BadDataError, match=f"sha256 is {digest}, expected 00; .* not opened"):
    files.read_checked(path, "00")
  with pytest.raises(MissingDataError, match="no such file of weights"):
    files.read_checked(tmp_path / "none", digest)
  with pytest.raises(BadDataError, match="cannot be read"):
    files.read_checked(tmp_path, digest)


def test_files_of_packages_are_found_without_an_import(tmp_path: Path, monkeypatch) -> None:
  (tmp_path / "some_package").mkdir()
  (tmp_path / "some_package" / "__init__.py").write_text("raise RuntimeError")
  (tmp_path / "some_package" / "file").write_text("")
  monkeypatch.syspath_prepend(tmp_path)
  assert files.in_package("some_package", "file") == tmp_path / "some_package" / "file"
  assert files.in_package("some_package", "other") is None
  assert files.in_package("no_such_package", "file") is None
