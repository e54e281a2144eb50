"""Public reports of people who do this job with other tools, as they would meet them here.

Each test remakes one report with commands as a user types them, and looks at what was written. The
kinds that the reports are of are tested where the rules are: tests/data/test_places.py,
test_last_copies.py, test_naming.py, test_folder.py, test_picture_folder.py, test_images.py,
test_metadata.py, test_picture_marks.py, test_captions.py and test_masks.py,
tests/models/test_places.py, tests/studies/test_pictures.py, and in this folder test_places.py and
test_shared_flags.py. Nothing of the package is imported here, so that this file can be laid into
an older commit and fails there as the report says.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 30)
NOISE = ("--method=random_noise", "--noprogress")


def _picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
  pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
  return Image.fromarray(pixels).convert(mode)


def _folder(place: Path, *numbers: int) -> Path:
  """A folder with a picture p<number>.png for each number."""
  place.mkdir(exist_ok=True)
  for number in numbers:
    _picture(number).save(place / f"p{number}.png")
  return place


def _pixels(path: Path) -> np.ndarray:
  with Image.open(path) as picture:
    return np.asarray(picture).astype(int)


def _names(folder: Path) -> list[str]:
  """Pictures below a folder."""
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png") if p.is_file())


def _bytes(folder: Path) -> dict[str, bytes]:
  files = (path for path in folder.rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _manifest(folder: Path) -> dict[str, Any]:
  return json.loads((folder / "manifest.json").read_text("utf-8"))


def _places(source: Path, output: Path) -> list[str]:
  return [f"--input={source}", f"--output={output}"]


def _went(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
  assert done.returncode == 0, done.stderr
  return done


def _error(done: subprocess.CompletedProcess[str]) -> str:
  """The one line that says why a run was refused."""
  assert "Traceback" not in done.stderr, done.stderr
  assert done.returncode != 0, done.stdout
  lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1, done.stderr
  return lines[0]


def test_what_a_run_would_write_over_is_no_input(tmp_path: Path, entry_point) -> None:
  """genid/Yleaf#55: the input was in the output folder, and was deleted."""
  source, output = _folder(tmp_path / "in", 0, 1), tmp_path / "out"
  work = tmp_path / "out.work"
  _went(entry_point("protect", *NOISE, *_places(source, output)))
  before = _bytes(tmp_path)
  clean = work / "clean"
  first = clean / "p0.png"

  # As it was reported.
  done = entry_point("protect", *NOISE, *_places(clean, output), "--overwrite")
  lost = sorted(before.keys() - _bytes(tmp_path).keys())
  assert not lost, done.stderr
  assert "--input" in _error(done)
  assert _bytes(tmp_path) == before

  # Equal, above, below; and all that write a folder.
  jpeg, study = ["--method=jpeg", "--noprogress"], ["--config=demo:smoke", f"--workdir={work}"]
  model = ["--model=tiny_ldm", "--num_samples=1"]
  for name, *words in (
    ("protect", *NOISE, *_places(source, source), "--overwrite"),
    ("protect", *NOISE, *_places(tmp_path, output), "--overwrite"),
    ("protect", *NOISE, *_places(output, output), "--overwrite"),
    ("purify", *jpeg, *_places(source, source), "--overwrite"),
    ("purify", *jpeg, *_places(clean, tmp_path / "pure"), f"--workdir={work}", "--overwrite"),
    ("sample", *model, f"--init_image={first}", f"--output={clean}", "--overwrite"),
    ("train", *study, f"--input={clean}"),
    ("udp", *study, f"--config.data.source={clean}"),
    ("eudp", *study, f"--config.data.source={clean}"),
    ("impress", *study, f"--config.data.source={clean}"),
  ):
    message = _error(entry_point(name, *words))
    assert "choose another" in message, (name, message)
    assert _bytes(tmp_path) == before, (name, words)


def test_protected_pictures_are_not_protected_again(tmp_path: Path, entry_point) -> None:
  """jarun/imgp#35: the output folder lay in the input folder, and the tool ran twice."""
  source = _folder(tmp_path / "in", 0, 1)
  done = [
    entry_point("protect", *NOISE, *_places(source, source / name)) for name in ("out", "again")
  ]
  twice = [name for name in _names(source / "again") if name.startswith("out")]
  assert not twice
  for each in done:
    message = _error(each)
    assert "--output" in message and "lies in --input" in message
  assert sorted(path.name for path in source.iterdir()) == ["p0.png", "p1.png"]

  # A finished output and its work folder were moved there, and lie among the pictures.
  _went(entry_point("protect", *NOISE, *_places(source, tmp_path / "first")))
  shutil.move(tmp_path / "first", source / "first")
  shutil.move(tmp_path / "first.work", source / "first.work")
  said = _went(entry_point("protect", *NOISE, *_places(source, tmp_path / "second"))).stderr
  assert _names(tmp_path / "second") == ["p0.png", "p1.png"]
  (line,) = [line for line in said.splitlines() if "left out" in line]
  assert "2 folders" in line and "first, first.work" in line


def _exif_with_preview(preview: bytes) -> bytes:
  """EXIF of a camera: its make, no orientation, and a second directory with a preview."""
  make = struct.pack("<HHHI4s", 1, 0x010F, 2, 4, b"Cam\0")
  second = 8 + len(make) + 4
  start = second + 2 + 3 * 12 + 4
  entries = ((0x0103, 3, 6), (0x0201, 4, start), (0x0202, 4, len(preview)))
  directory = struct.pack("<H", len(entries))
  for tag, kind, value in entries:
    directory += struct.pack("<HHII", tag, kind, 1, value)
  first = b"II*\0" + struct.pack("<I", 8) + make + struct.pack("<I", second)
  return b"Exif\0\0" + first + directory + bytes(4) + preview


def _with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
  """A JPEG file with one more segment behind its first marker."""
  return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def _resource(number: int, content: bytes) -> bytes:
  """A segment of Photoshop with one resource."""
  head = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", number, 0, len(content))
  return head + content + bytes(len(content) % 2)


def _jpeg(picture: Image.Image, **more: Any) -> bytes:
  file = io.BytesIO()
  picture.save(file, "JPEG", **more)
  return file.getvalue()


def _carried(path: Path) -> bytes:
  """A file's bytes, and what it carries compressed."""
  with Image.open(path) as picture:
    picture.load()
    values = [v if isinstance(v, bytes) else str(v).encode() for v in picture.info.values()]
  return b"\n".join([path.read_bytes(), *values])


def test_no_preview_of_the_clean_picture_is_published(tmp_path: Path, entry_point) -> None:
  """Simple-Gallery#2840: a thumbnail in EXIF without an orientation showed the old picture."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  clean = _picture(0)
  preview = _jpeg(clean.resize((16, 12)))
  text = base64.b64encode(preview)
  packet = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-"
    b"ns#'><r:Description xmlns:xmp='http://ns.adobe.com/xap/1.0/' xmlns:g='http://ns.adobe.com/"
    b"xap/1.0/g/img/'><xmp:Thumbnails><r:Alt><r:li r:parseType='Resource'><g:image>%b</g:image>"
    b"</r:li></r:Alt></xmp:Thumbnails></r:Description></r:RDF></x:xmpmeta>" % text
  )
  photoshop = struct.pack(">IIIIIIHH", 1, 16, 12, 48, 576, len(preview), 24, 1) + preview
  files = {
    "exif": _jpeg(clean, exif=_exif_with_preview(preview)),
    "xmp": _jpeg(clean, xmp=packet),
    "photoshop": _with_segment(_jpeg(clean), 0xED, _resource(0x040C, photoshop)),
    "behind": _jpeg(clean) + preview,
  }
  for name, content in files.items():
    assert preview in content or text in content
    (source / f"{name}.jpg").write_bytes(content)
  clean.save(source / "mpo.jpg", "MPO", save_all=True, append_images=[clean.resize((16, 12))])
  assert preview[-200:] in (source / "mpo.jpg").read_bytes()

  _went(entry_point("protect", *NOISE, *_places(source, output)))
  assert _names(output) == sorted(f"{name}.png" for name in (*files, "mpo"))
  for path in sorted(output.glob("*.png")):
    published = _carried(path)
    letters = b"".join(published.split())  # Long values are written in lines.
    # The end is of this picture alone, where the start is of every JPEG.
    assert preview[-200:] not in published, path.name
    for form in (text, preview.hex().encode()):
      assert form[-200:] not in letters, path.name
  with Image.open(output / "exif.png") as saved:
    assert saved.getexif()[0x010F] == "Cam"


def test_a_name_that_is_no_utf_8_is_worked_on(tmp_path: Path, process_environment) -> None:
  """internetarchive#284: a file's name was in Shift JIS."""
  source, output = _folder(tmp_path / "in", 0), tmp_path / "out"
  content = io.BytesIO()
  _picture(1).save(content, "PNG")
  name = os.fsencode(source) + b"/" + "イ".encode("shift_jis") + b".png"
  with open(name, "wb") as file:
    file.write(content.getvalue())

  def run(program: str, *words: str) -> None:
    command = [sys.executable, "-m", f"experiments.{program}", *words]
    done = subprocess.run(command, cwd=ROOT, env=process_environment, capture_output=True)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="backslashreplace")
    assert done.returncode == 0, done.stderr

  run("protect", *NOISE, *_places(source, output))
  assert len(list(output.glob("*.png"))) == 2
  made = {entry["file"] for entry in _manifest(output)["images"]}
  assert made == {path.name for path in output.glob("*.png")} and "p0.png" in made
  run("verify", f"--clean={source}", f"--protected={output}", "--radius_255=16")
  run("purify", *_places(source, tmp_path / "pure"), "--method=jpeg", "--noprogress")
  assert {path.name for path in (tmp_path / "pure").glob("*.png")} == made


def test_pictures_that_differ_by_extension_keep_their_names(tmp_path: Path, entry_point) -> None:
  """waifu2x-ncnn-vulkan#27: of a JPEG and a PNG of one name, one got the other's place."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  Image.new("RGB", SIZE, (200, 20, 20)).save(source / "c.jpg")
  Image.new("RGB", SIZE, (20, 20, 200)).save(source / "c.png")
  _went(entry_point("protect", *NOISE, *_places(source, output)))
  red, _, blue = _pixels(output / "c.png").mean((0, 1))
  assert blue > 180 and red < 40
  assert _names(output) == ["c.jpg.png", "c.png"]
  red, _, blue = _pixels(output / "c.jpg.png").mean((0, 1))
  assert red > 180 and blue < 40
  words = [f"--clean={source}", f"--protected={output}", "--radius_255=16"]
  assert "2 files" in _went(entry_point("verify", *words)).stdout


def test_the_current_folder_is_an_output_like_any_other(
  tmp_path: Path, process_environment
) -> None:
  """Own: --output=. made a work folder "..work" in the output, which was refused."""
  source, output = _folder(tmp_path / "in", 0), tmp_path / "out"
  output.mkdir()
  command = [sys.executable, "-m", "experiments.protect", *NOISE, "--input=../in", "--output=."]
  environment = process_environment | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True)
  _went(done)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.work"]
  assert sorted(path.name for path in output.iterdir()) == ["manifest.json", "p0.png"]
  assert _names(tmp_path / "out.work" / "clean") == _names(source)


def test_of_two_runs_on_one_output_the_second_is_refused(
  tmp_path: Path, process_environment
) -> None:
  """coco#1683: two runs worked on one output."""
  source, output = _folder(tmp_path / "in", 0, 1), tmp_path / "out"
  command = [sys.executable, "-m", "experiments.protect", *NOISE, *_places(source, output)]
  said = [tmp_path / "first.txt", tmp_path / "second.txt"]

  def start(place: Path) -> subprocess.Popen[bytes]:
    with place.open("w") as file:
      return subprocess.Popen(command, cwd=ROOT, env=process_environment, stdout=file, stderr=file)

  first = start(said[0])
  try:
    until = time.monotonic() + 120
    while "2 pictures" not in said[0].read_text():
      assert first.poll() is None and time.monotonic() < until, said[0].read_text()
      time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # At work for as long as the second takes.
    second = start(said[1])
    second.wait(300)
  finally:
    first.send_signal(signal.SIGCONT)
    first.wait(300)
  texts = [place.read_text() for place in said]
  assert "Traceback" not in texts[0] and "Traceback" not in texts[1], texts
  assert (first.returncode, second.returncode) == (0, 4), texts
  assert f"in use by process {first.pid}" in texts[1] and "since" in texts[1]
  assert sorted(p.name for p in output.iterdir()) == ["manifest.json", "p0.png", "p1.png"]


def test_a_mask_that_allows_nothing_is_an_error(tmp_path: Path, entry_point) -> None:
  """stable-diffusion-webui#1188: the mask was painted in red on a transparent ground."""
  source, output = _folder(tmp_path / "in", 0), tmp_path / "out"
  pixels = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
  pixels[10:20, 10:20] = 255, 0, 0, 255
  mask = tmp_path / "mask.png"
  Image.fromarray(pixels).save(mask)
  words = [*NOISE, *_places(source, output), f"--mask={mask}"]
  message = _error(entry_point("protect", *words))
  assert str(mask) in message and "white" in message and "transparent" in message
  assert not output.exists()
  # Painted in white, the same mask works.
  pixels[10:20, 10:20] = 255
  Image.fromarray(pixels).save(mask)
  _went(entry_point("protect", *words))
  changed = (_pixels(output / "p0.png") != _pixels(source / "p0.png")).any(-1)
  assert changed.any() and not changed[pixels[..., 3] == 0].any()


def test_captions_come_along_with_the_new_names(tmp_path: Path, entry_point) -> None:
  """datasets#6442, sd-scripts: captions in tables and in text files beside the pictures."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  for number, name in enumerate(("a.jpg", "table/b.jpg", "kohya/c.jpg", "kohya/d.png")):
    (source / name).parent.mkdir(exist_ok=True)
    _picture(number).save(source / name)
  line = '{"file_name": "a.jpg", "text": "a cat", "artist": "nobody"}\n'
  (source / "metadata.jsonl").write_text(line)
  (source / "table" / "metadata.csv").write_text("file_name,text\nb.jpg,a dog\n")
  (source / "kohya" / "c.txt").write_text("a sea")
  (source / "kohya" / "d.caption").write_text("a hill")
  _went(entry_point("protect", *NOISE, *_places(source, output), "--model=tiny_ldm"))
  assert _names(output) == ["a.png", "kohya/c.png", "kohya/d.png", "table/b.png"]
  carried = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
  assert {"metadata.jsonl", "table/metadata.csv", "kohya/c.txt", "kohya/d.caption"} <= carried
  assert json.loads((output / "metadata.jsonl").read_text()) == json.loads(line) | {
    "file_name": "a.png"
  }
  rows = (output / "table" / "metadata.csv").read_text().split()
  assert rows == ["file_name,text", "b.png,a", "dog"]
  assert (output / "kohya" / "c.txt").read_text() == "a sea"
  assert (output / "kohya" / "d.caption").read_text() == "a hill"
  # A model with text was given them.
  used = {entry["file"]: entry["source"]["caption"] for entry in _manifest(output)["images"]}
  assert used == {
    "a.png": "a cat", "table/b.png": "a dog", "kohya/c.png": "a sea", "kohya/d.png": "a hill"
  }  # fmt: skip


def test_captions_may_start_with_a_byte_order_mark(tmp_path: Path, entry_point) -> None:
  """promptflow#4172: a JSON Lines file that an editor on Windows had saved."""
  source, output = _folder(tmp_path / "in", 0), tmp_path / "out"
  line = b'{"file_name": "p0.png", "text": "a cat"}\n'
  (source / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + line)
  _went(entry_point("protect", *NOISE, *_places(source, output), "--model=tiny_ldm"))
  (made,) = _manifest(output)["images"]
  assert made["source"]["caption"] == "a cat"
  (row,) = (output / "metadata.jsonl").read_text("utf-8-sig").splitlines()
  assert json.loads(row) == json.loads(line)


def test_what_is_converted_or_passed_over_is_said(tmp_path: Path, entry_point) -> None:
  """Pillow#3011, FileConverter#640: pictures lost depth, frames and colours in silence."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  deep = np.random.default_rng(0).integers(0, 65536, (SIZE[1], SIZE[0]), np.uint16)
  Image.fromarray(deep).save(source / "deep.png")
  frames = [_picture(number, "P") for number in range(3)]
  frames[0].save(source / "moves.gif", save_all=True, append_images=frames[1:])
  _picture(0, "CMYK").save(source / "print.jpg")
  _picture(1).save(source / "profile.png", icc_profile=b"junk" * 50)
  _picture(2).save(source / "usual.png")
  for name in ("one.mp4", "two.mp4", "letter.docx", "phone.heic"):
    (source / name).write_bytes(b"1")
  done = _went(entry_point("protect", *NOISE, *_places(source, output)))
  made = _manifest(output)
  notes = {entry["file"]: " ".join(entry.get("notes", ())) for entry in made["images"]}
  words = {"deep": "16-bit", "moves": "3 frames", "print": "CMYK", "profile": "ICC profile"}
  for name, word in words.items():
    assert word in done.stderr
    assert word in notes[f"{name}.png"]
  assert not notes["usual.png"]
  assert "2 .mp4" in done.stderr and "1 .docx" in done.stderr
  assert made["origin"]["ignored_kinds"] == {".mp4": 2, ".docx": 1}
  assert "phone.heic: " in done.stdout
  assert [name for name, _ in made["origin"]["skipped"]] == ["phone.heic"]


def test_what_a_picture_carries_comes_along_or_its_loss_is_said(
  tmp_path: Path, entry_point
) -> None:
  """imgproxy#771, contao/image#80: XMP, IPTC, texts and the resolution were dropped."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  packet = (
    "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-"
    "syntax-ns#'><rdf:Description xmlns:plus='http://ns.useplus.org/ldf/xmp/1.0/' "
    "plus:DataMining='http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING'/></rdf:RDF>"
    "</x:xmpmeta>"
  )
  texts = PngImagePlugin.PngInfo()
  texts.add_text("Copyright", "(c) An Artist")
  texts.add_itxt("XML:com.adobe.xmp", packet)
  _picture(0).save(source / "png.png", pnginfo=texts, dpi=(300, 300))
  # IPTC's record 2:80, who made it.
  record = b"\x1c\x02\x50" + struct.pack(">H", 9) + b"An Artist"
  jpeg = _jpeg(_picture(1), dpi=(300, 300), xmp=packet.encode(), comment=b"by hand")
  (source / "jpeg.jpg").write_bytes(_with_segment(jpeg, 0xED, _resource(0x0404, record)))
  (source / "damaged.jpg").write_bytes(_jpeg(_picture(2), xmp=b"<x:xmpmeta>no XML"))
  done = _went(entry_point("protect", *NOISE, *_places(source, output)))
  for name in ("png", "jpeg"):
    with Image.open(output / f"{name}.png") as saved:
      saved.load()
      assert "DMI-PROHIBITED-AIMLTRAINING" in str(saved.info.get("xmp")), name
      assert np.allclose(saved.info["dpi"], 300, atol=0.1), name
  published = _carried(output / "png.png")
  assert b"(c) An Artist" in published
  published = _carried(output / "jpeg.png")
  # A PNG holds IPTC as hexadecimal digits in lines.
  assert record.hex().encode() in b"".join(published.split())
  assert b"by hand" in published
  # Nothing of the third can be read.
  assert "XMP left out" in done.stderr
  notes = {entry["file"]: entry.get("notes", []) for entry in _manifest(output)["images"]}
  assert not notes["png.png"] and not notes["jpeg.png"]
  assert any("XMP" in note for note in notes["damaged.png"])


def test_a_grey_picture_stays_grey(tmp_path: Path, entry_point) -> None:
  """MangaJaNai#33: a grey manga page came out in colours."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  _picture(0, "L").save(source / "page.png")
  _picture(1, "L").save(source / "scan.jpg")
  _picture(2, "LA").save(source / "glass.png")
  _picture(3, "L").convert("RGB").save(source / "equal.png")
  _went(entry_point("protect", *NOISE, *_places(source, output)))
  pure = tmp_path / "pure"
  words = [*_places(source, pure), "--method=jpeg", "--noprogress"]
  _went(entry_point("purify", *words))
  for folder in (output, pure):
    for name, mode in (("page", "L"), ("scan", "L"), ("glass", "LA")):
      with Image.open(folder / f"{name}.png") as saved:
        assert saved.mode == mode, (folder.name, name)
    assert not np.ptp(_pixels(folder / "equal.png"), axis=-1).any(), folder.name
  for name in ("page.png", "equal.png"):
    change = abs(_pixels(output / name) - _pixels(source / name))
    assert 8 < change.max() <= 16, name


def test_a_change_can_be_made_weaker_where_it_is_seen(tmp_path: Path, entry_point) -> None:
  """Glaze's page on intensity: flat colours and line art show the change; "weaker please"."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  pixels = np.array(_picture(0))
  pixels[:, :20] = 200
  Image.fromarray(pixels).save(source / "a.png")
  words = ["--radius_255=8", "--spare_flat=0.75"]
  _went(entry_point("protect", *NOISE, *_places(source, output), *words))
  change = abs(_pixels(output / "a.png") - pixels)
  assert 6 <= change[:, 28:].max() <= 8
  # A quarter is left of it, but near the lively half.
  assert 1 <= change[:, :12].max() <= 2
  words = [f"--clean={source}", f"--protected={output}", "--radius_255=8"]
  _went(entry_point("verify", *words))
  # All that protect have the flag, and look at it.
  for name in ("protect", "eudp", "udp", "impress"):
    if name == "protect":
      more = [*NOISE, *_places(source, tmp_path / "other")]
    else:
      more = ["--config=demo:smoke", f"--workdir={tmp_path / 'other'}"]
    assert "--radius_255 is 300" in _error(entry_point(name, *more, "--radius_255=300")), name
  assert not (tmp_path / "other").exists()
  done = entry_point("protect", *NOISE, *_places(source, tmp_path / "b"), "--config.radius_255=8")
  assert done.returncode != 0 and "without a config --radius_255=8" in done.stderr


def test_a_model_that_cannot_be_read_says_what_it_lacks(tmp_path: Path, entry_point) -> None:
  """diffusers#5259, webui#8123: a part was missing, or was one file, or a Git LFS pointer."""
  source, output = _folder(tmp_path / "in", 0), tmp_path / "out"

  def message(model: Path) -> str:
    words = [*_places(source, output), "--method=eudp", "--noprogress", f"--model={model}"]
    return _error(entry_point("protect", *words))

  model = tmp_path / "model"
  shutil.copytree(ROOT / "udp_jax" / "models" / "tiny_ldm", model)
  shutil.move(model / "vae", tmp_path / "vae")
  said = message(model)
  assert f"{model} has no vae" in said
  shutil.move(tmp_path / "vae", model / "vae")

  weights = model / "unet" / "diffusion_pytorch_model.safetensors"
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 8686120\n"
  weights.write_text(pointer)
  said = message(model)
  assert str(weights) in said and "Git LFS pointer" in said and "git lfs pull" in said

  save_file({"x": np.zeros(1, np.float32)}, tmp_path / "one.safetensors")
  (tmp_path / "one.ckpt").write_bytes(b"PK\3\4")
  for name, why in (("one.safetensors", "no Stable Diffusion checkpoint"), ("one.ckpt", "pickle")):
    said = message(tmp_path / name)
    assert str(tmp_path / name) in said and why in said
    assert "hf download" not in said  # Of another model, as if none were there.
  assert not output.exists()


def test_a_folder_called_like_a_picture_is_in_nobody_s_way(tmp_path: Path, entry_point) -> None:
  """Own: a.jpg beside a folder a.png/ stopped the whole batch."""
  source, output = _folder(tmp_path / "in"), tmp_path / "out"
  _picture(0).save(source / "a.jpg")
  _folder(source / "a.png", 1)
  _went(entry_point("protect", *NOISE, *_places(source, output)))
  assert _names(output) == ["a.jpg.png", "a.png/p1.png"]
  words = [f"--clean={source}", f"--protected={output}", "--radius_255=16"]
  assert "2 files" in _went(entry_point("verify", *words)).stdout


def test_only_what_is_missing_is_made(tmp_path: Path, entry_point) -> None:
  """Real-ESRGAN-ncnn#31, upscayl#1018: one picture more, or one output less, and all over again."""
  source, output = _folder(tmp_path / "in", 0, 1), tmp_path / "out"

  def run() -> tuple[dict[str, bytes], dict[str, int]]:
    _went(entry_point("protect", *NOISE, *_places(source, output)))
    return (
      {path.name: path.read_bytes() for path in output.glob("*.png")},
      {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")},
    )

  first, made = run()
  _folder(source, 2)
  second, more = run()
  assert set(second) == {"p0.png", "p1.png", "p2.png"}
  assert more | made == more  # Those of before are the same files.
  (output / "p1.png").unlink()
  third, again = run()
  assert third == second and third | first == third
  assert again | {"p1.png": 0} == more | {"p1.png": 0}
  assert run() == (third, again)
