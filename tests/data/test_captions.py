"""Captions in tables and text files: read, carried along, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from udp_jax.data import captions
from udp_jax.data.listing import ImageFile
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
    (b'{"file_name": "a.png", "text": "\\ud83c"}', 'line 1: "text" holds half a character'),
    (b'{"file_name": "a.png", "text": null}', 'line 1: "file_name" and "text" must be texts'),
    (b'{"file_name": "a.png", "text": "\xff"}', "cannot be read as UTF-8 text"),
  ],
)
def test_bad_lines_are_named(content: bytes, message: str, tmp_path: Path) -> None:
  (tmp_path / "metadata.jsonl").write_bytes(content)
  with pytest.raises(BadDataError, match=message):
    captions.read_captions(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
  line = b'{"file_name": "a.png", "text": "one"}\n'
  (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + line)
  assert captions.read_captions(tmp_path) == {"a.png": "one"}
  (tmp_path / "metadata.jsonl").unlink()
  (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,text\r\na.png,one\r\n")
  assert captions.read_captions(tmp_path) == {"a.png": "one"}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("text\none\n", 'line 1 has no column "file_name"'),
    ("file_name,text\na.png,one\nb.png,two,three\n", "line 3 has another number of columns"),
    ("file_name,text\na.png\n", "line 2 has another number of columns"),
    ('file_name,text\na.png,"one"two\n', "line 2: "),
    ("file_name\na.png\n", 'line 2 is not an object with "file_name" and "text"'),
    ("file_name,text\na.png,one\na.png,two\n", "lines 2 and 3 have different captions of a.png"),
  ],
)
def test_bad_lines_of_csv_are_named(content: str, message: str, tmp_path: Path) -> None:
  (tmp_path / "metadata.csv").write_text(content)
  with pytest.raises(BadDataError, match=message):
    captions.read_captions(tmp_path)


def test_two_captions_of_a_picture_have_an_order(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  pictures = ["a.png", "b.png", "sub/c.png", "d.png"]
  (tmp_path / "sub").mkdir()
  (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "table"}\n')
  (tmp_path / "sub/metadata.jsonl").write_text('{"file_name": "c.png", "text": "below"}\n')
  for name in ("a.txt", "b.txt", "b.caption", "sub/c.txt"):
    (tmp_path / name).write_text(f"{name}\n")
  assert captions.read_captions(tmp_path, pictures) == {
    "a.png": "table",
    "b.png": "b.caption",
    "sub/c.png": "below",
  }
  assert "3 captions differ from others of the same picture" in caplog.text
  (tmp_path / "d.txt").write_bytes(b"\xff")
  with pytest.raises(BadDataError, match=r"d\.txt: cannot be read as UTF-8 text"):
    captions.read_captions(tmp_path, pictures)


def test_what_is_carried_has_the_new_names_and_all_fields(tmp_path: Path) -> None:
  (tmp_path / "sub").mkdir()
  lines = (
    '{"file_name": "a.jpg", "text": "caf\u00e9", "boxes": [[1, 2]]}\n'
    '{"file_name": "gone.jpg", "text": "x"}\n{"file_name": "sub/b.tif", "tags": null}\n'
  )
  (tmp_path / "metadata.jsonl").write_text(lines, "utf-8")
  (tmp_path / "sub/metadata.csv").write_text('file_name,text,n\nb.tif,"one, ""two""",3\n')
  (tmp_path / "sub/b.txt").write_bytes(b"\xef\xbb\xbftags, more")
  pictures = [
    ImageFile("a.jpg", tmp_path / "a.jpg", "a.jpg"),
    ImageFile("sub/b", tmp_path / "sub/b.tif", "sub/b.tif"),
  ]
  found = captions.beside(tmp_path, pictures)
  assert found.render(["a.jpg", "sub/b"]) == {
    "metadata.jsonl": '{"file_name": "a.jpg.png", "text": "caf\u00e9", "boxes": [[1, 2]]}\n'
    '{"file_name": "sub/b.png", "tags": null}\n'.encode(),
    "sub/metadata.csv": b'file_name,text,n\nb.png,"one, ""two""",3\n',
    "sub/b.txt": b"\xef\xbb\xbftags, more",
  }
  assert list(found.render(["a.jpg"])) == ["metadata.jsonl"]
  assert found.render([]) == {}


def test_captions_that_are_left_out_are_counted_by_kind(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  pictures = []
  for name in ("p0.png", "p1.png", "p2.png", "unchosen.png"):
    (tmp_path / name).write_bytes(b"")
    pictures.append(ImageFile(name[:2], tmp_path / name, name))
  (tmp_path / "p0.txt").symlink_to(tmp_path / "nothing")
  (tmp_path / "p1.txt").write_bytes(b"a" * 3_000_000)
  (tmp_path / "p2.txt").write_text("kept")
  rows = ("P0.PNG", "P2.png", "../secret/p0.png", "gone.png", "", "unchosen.png", "p1.png")
  table = "".join(json.dumps({"file_name": name, "text": "a"}) + "\n" for name in rows)
  (tmp_path / "metadata.jsonl").write_text(table)
  found = captions.beside(tmp_path, pictures[:3])
  assert found.render(["p0", "p1", "p2"]) == {
    "metadata.jsonl": b'{"file_name": "p1.png", "text": "a"}\n',
    "p2.txt": b"kept",
  }
  said = [record.getMessage() for record in caplog.records]
  assert [line.removeprefix(f"{tmp_path}: left out ") for line in said] == [
    "1 caption that is a link to nothing: p0.txt",
    "1 caption of more than 1 MiB: p1.txt",
    "2 captions whose table names its picture in other capitals: P0.PNG",
    "1 caption whose table names a file outside of the folder: ../secret/p0.png",
    "2 captions whose table names a picture that is not there: gone.png",
  ]


@pytest.mark.parametrize(
  ("name", "content", "carried"),
  [
    (
      "metadata.jsonl",
      b'{"image_file_name": "a.png", "text": "one"}\n',
      b'{"image_file_name": "b.png", "text": "one"}\n',
    ),
    (
      "metadata.jsonl",
      b'{"text": "one", "image": "a.png"}\n',
      b'{"text": "one", "image": "b.png"}\n',
    ),
    ("metadata.csv", b"image;text\na.png;one\n", b"image,text\nb.png,one\n"),
    ("metadata.csv", b"text\timage_file_name\none\ta.png\n", b"text,image_file_name\none,b.png\n"),
    (
      "metadata.csv",
      "file_name,text\r\na.png,one\r\n".encode("utf-16"),
      b"file_name,text\nb.png,one\n",
    ),
    (
      "metadata.jsonl",
      b"\xfe\xff" + '{"file_name": "a.png", "text": "one"}\n'.encode("utf-16-be"),
      b'{"file_name": "b.png", "text": "one"}\n',
    ),
    ("a.txt", "one".encode("utf-16"), "one".encode("utf-16")),
  ],
)
def test_other_forms_of_captions_are_read(
  tmp_path: Path, name: str, content: bytes, carried: bytes
) -> None:
  (tmp_path / name).write_bytes(content)
  assert captions.read_captions(tmp_path, ["a.png"]) == {"a.png": "one"}
  found = captions.beside(tmp_path, [ImageFile("b", tmp_path / "a.png", "a.png")])
  assert found.render(["b"]) == {name.replace("a.txt", "b.txt"): carried}
