"""Good files of every kind that the package reads, small, with everything that is parsed."""

from __future__ import annotations

import functools
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import safetensors.numpy
from PIL import Image, ImageCms, PngImagePlugin

from tests.drill import mutate
from tests.drill.mutate import Part

XMP = (
  b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
  b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta><?xpacket end="w"?>'
)
_SIZE = (12, 15)


def _pixels(channels: int = 3, seed: int = 0) -> np.ndarray:
  shape = _SIZE if channels == 1 else (*_SIZE, channels)
  noise = np.random.default_rng(seed).integers(0, 32, shape)
  ramp = np.linspace(0, 220, _SIZE[1])[:, None] if channels > 1 else np.linspace(0, 220, _SIZE[1])
  return (ramp + noise).astype(np.uint8)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _profile(space: str = "sRGB") -> bytes:
  return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def exif(thumbnail: bool = True) -> bytes:
  """A TIFF block with GPS, an EXIF list of its own, and a JPEG thumbnail."""
  tags = Image.Exif()
  tags[0x010F], tags[0x0112], tags[0x0132] = "Camera", 6, "2026:01:01 00:00:00"
  tags.get_ifd(0x8769).update({0x9003: "2026:01:01 00:00:00", 0x829A: (1, 250)})
  tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 24.0, 0.0)})
  block = tags.tobytes().removeprefix(b"Exif\0\0")
  if not thumbnail:
    return block
  preview = _saved(Image.fromarray(_pixels()), "JPEG")
  # The second list, which holds the thumbnail, goes to the end.
  order = "<" if block[:2] == b"II" else ">"
  first = struct.unpack(order + "I", block[4:8])[0]
  link = first + 2 + 12 * struct.unpack(order + "H", block[first : first + 2])[0]
  block = block[:link] + struct.pack(order + "I", len(block)) + block[link + 4 :]
  place = len(block) + 2 + 12 * 3 + 4
  fields = [(0x0103, 3, 1, 6), (0x0201, 4, 1, place), (0x0202, 4, 1, len(preview))]
  block += struct.pack(order + "H", len(fields))
  for tag, kind, count, value in fields:
    packed = struct.pack(
      order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value])
    )
    block += struct.pack(order + "HHI", tag, kind, count) + packed
  return block + bytes(4) + preview


def _photoshop() -> bytes:
  caption = b"\x1c\x02\x78\x00\x05Hello\x1c\x02\x50\x00\x02Me"
  preview = struct.pack(">IIIIIIHH", 1, 15, 12, 48, 576, 300, 24, 1)
  preview += _saved(Image.fromarray(_pixels()), "JPEG")
  made = b"Photoshop 3.0\0"
  for number, body in ((0x0404, caption), (0x040C, preview)):
    made += b"8BIM" + struct.pack(">HHI", number, 0, len(body)) + body + b"\0" * (len(body) % 2)
  return made


@functools.cache
def png() -> tuple[bytes, ...]:
  """Of every colour type and depth that there is, some with everything that a PNG can carry."""
  text = PngImagePlugin.PngInfo()
  text.add_text("Comment", "a text", zip=True)
  text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
  text.add_text("Title", "latin")
  full = {"pnginfo": text, "exif": exif(), "icc_profile": _profile(), "dpi": (300, 300)}
  image = Image.fromarray(_pixels())
  made = [_saved(image, "PNG", **full), _saved(Image.fromarray(_pixels(4)), "PNG", **full)]
  made.append(_saved(image.convert("L"), "PNG", transparency=7))
  made.append(_saved(image.convert("LA"), "PNG", icc_profile=_profile()))
  made.append(_saved(image.convert("P"), "PNG", transparency=bytes(range(200))))
  made.append(_saved(image.convert("1"), "PNG"))
  made.append(_saved(Image.fromarray(_pixels(1).astype(np.uint16) * 257), "PNG"))
  made.append(_saved(image, "PNG", transparency=(1, 2, 3)))
  chunks = mutate.png_split(made[0])
  colour = [Part(b"gAMA", struct.pack(">I", 45455)), Part(b"cHRM", bytes(32)), Part(b"sRGB", b"\1")]
  made.append(mutate.png_join([chunks[0], *colour, *chunks[1:]]))
  for depth, kind in ((16, 2), (16, 6), (8, 2)):
    channels = {2: 3, 6: 4}[kind]
    width = _SIZE[1] * channels * depth // 8
    raw = b"".join(b"\0" + bytes((i * 7 + j) % 256 for j in range(width)) for i in range(_SIZE[0]))
    head = struct.pack(">IIBBBBB", _SIZE[1], _SIZE[0], depth, kind, 0, 0, 0)
    parts = [Part(b"IHDR", head), Part(b"IDAT", zlib.compress(raw)), Part(b"IEND", b"")]
    made.append(mutate.png_join(parts))
  return tuple(made)


@functools.cache
def apng() -> tuple[bytes, ...]:
  """Three frames, with and without a default picture of their own."""
  frames = [Image.fromarray(_pixels(4, seed)) for seed in range(3)]
  options = {"save_all": True, "append_images": frames[1:], "duration": 50}
  return (
    _saved(frames[0], "PNG", **options),
    _saved(frames[0], "PNG", default_image=True, disposal=2, blend=1, **options),
  )


@functools.cache
def jpeg() -> tuple[bytes, ...]:
  """Baseline and progressive; grey, colour and CMYK; with everything that a JPEG can carry."""
  image = Image.fromarray(_pixels())
  app1 = exif()
  plain = _saved(
    image, "JPEG", exif=b"Exif\0\0" + app1, icc_profile=_profile(), xmp=XMP, dpi=(72, 72)
  )
  parts = mutate.jpeg_split(plain)
  whole = mutate.jpeg_join([*parts[:2], Part(b"\xff\xed", _photoshop()), *parts[2:]])
  wide = Image.fromarray(np.tile(_pixels(), (4, 4, 1)))
  return (
    *(plain, whole, _saved(image, "JPEG", progressive=True, comment=b"a comment")),
    *(_saved(image.convert("L"), "JPEG"), _saved(image.convert("CMYK"), "JPEG")),
    *(_saved(wide, "JPEG", subsampling=2, restart_marker_rows=1), _saved(wide, "JPEG", quality=5)),
    _saved(image.convert("CMYK"), "JPEG", icc_profile=_profile("LAB")),
    _saved(wide, "JPEG", progressive=True, exif=b"Exif\0\0" + exif(thumbnail=False)),
  )


@functools.cache
def mpo() -> tuple[bytes, ...]:
  """Two and three pictures in one file."""
  frames = [Image.fromarray(_pixels(3, seed)) for seed in range(3)]
  return (
    _saved(frames[0], "MPO", save_all=True, append_images=frames[1:2]),
    _saved(frames[0], "MPO", save_all=True, append_images=frames[1:], exif=b"Exif\0\0" + exif()),
  )


@functools.cache
def webp() -> tuple[bytes, ...]:
  """Lossy and lossless, transparent, animated, with profile, EXIF and XMP."""
  image, clear = Image.fromarray(_pixels()), Image.fromarray(_pixels(4))
  extras = {"icc_profile": _profile(), "exif": exif(), "xmp": XMP}
  return (
    *(_saved(image, "WEBP"), _saved(image, "WEBP", lossless=True), _saved(clear, "WEBP")),
    *(_saved(clear, "WEBP", lossless=True, **extras), _saved(image, "WEBP", **extras)),
    _saved(clear, "WEBP", save_all=True, append_images=[Image.fromarray(_pixels(4, 1))]),
  )


@functools.cache
def bmp() -> tuple[bytes, ...]:
  """Several depths, one with run lengths."""
  image = Image.fromarray(_pixels())
  made = [_saved(image.convert(mode), "BMP") for mode in ("RGB", "RGBA", "L", "P", "1")]
  runs = b"".join(bytes([15, i]) + b"\0\0" for i in range(12)) + b"\0\1"
  palette = bytes(range(256)) * 4
  head = struct.pack("<IiiHHIIiiII", 40, 15, 12, 1, 8, 1, len(runs), 0, 0, 256, 0)
  at = 14 + len(head) + len(palette)
  start = b"BM" + struct.pack("<IHHI", at + len(runs), 0, 0, at)
  return (*made, start + head + palette + runs)


@functools.cache
def tiff() -> tuple[bytes, ...]:
  """Several compressions, depths and byte orders, one with pages, one with tiles of tags."""
  image = Image.fromarray(_pixels())
  kinds = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
  made = [_saved(image, "TIFF", compression=kind) for kind in kinds]
  extras = {"icc_profile": _profile(), "dpi": (300, 300), "description": "words"}
  made.append(_saved(image.convert("RGBA"), "TIFF", **extras))
  made += [_saved(image.convert(mode), "TIFF") for mode in ("L", "1", "P", "CMYK", "LAB")]
  made.append(_saved(Image.fromarray(_pixels(1).astype(np.uint16) * 257), "TIFF"))
  made.append(_saved(Image.fromarray(_pixels(1).astype(np.float32)), "TIFF"))
  made.append(
    _saved(image, "TIFF", save_all=True, append_images=[image, image], tiffinfo={700: XMP})
  )
  made.append(_saved(image.convert("1"), "TIFF", compression="group4"))
  return (*made, _saved(image, "TIFF", big_tiff=True))


@functools.cache
def gif() -> tuple[bytes, ...]:
  """Still, transparent, animated with optimised frames."""
  frames = [Image.fromarray(_pixels(3, seed)) for seed in range(3)]
  return (
    _saved(frames[0], "GIF", comment=b"a comment"),
    _saved(Image.fromarray(_pixels(4)), "GIF", transparency=0),
    _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40, loop=0),
  )


def captions_jsonl() -> tuple[bytes, ...]:
  """metadata.jsonl as Hugging Face writes it."""
  lines = [{"file_name": f"good{i}.png", "text": f"picture {i}", "label": i} for i in range(3)]
  return ("\n".join(json.dumps(line) for line in lines).encode() + b"\n",)


def captions_csv() -> tuple[bytes, ...]:
  """metadata.csv with quoted texts."""
  return (b'file_name,text\ngood0.png,"a ""picture"", indeed"\ngood1.png,plain\n',)


def captions_txt() -> tuple[bytes, ...]:
  """A caption beside its picture."""
  return ("a picture of a café, best quality\n".encode(), b"tag one, tag two")


def manifest(folder: str = "out") -> dict:
  """A manifest of ours, shortened; its files are `good0.png` to `good2.png`."""
  entries = [
    {"file": f"good{i}.png", "sha256": "0" * 64, "max_abs_255": i, "psnr": 30.5} for i in range(3)
  ]
  return {
    "format": 1,
    "complete": True,
    "method": "eudp",
    "radius_255": 16.0,
    "origin": {"source": f"folder {folder}", "count": 3, "skipped": [["a.png", "damaged"]]},
    "images": entries,
    "worst": {"file": "good2.png", "max_abs_255": 2},
  }


@functools.cache
def tensors() -> tuple[bytes, ...]:
  """Safetensors: one learned token, and LoRA's factors."""
  generator = np.random.default_rng(0)
  token = {"<mine>": generator.normal(size=(2, 8)).astype(np.float32)}
  stem = "unet.down_blocks.0.attentions.0.to_q"
  factors = {
    f"{stem}.lora_A.weight": np.ones((2, 8), np.float32),
    f"{stem}.lora_B.weight": np.ones((8, 2), np.float32),
  }
  return (
    safetensors.numpy.save(token),
    safetensors.numpy.save(factors, metadata={"format": "pt", "lora_adapter_metadata": "{}"}),
    safetensors.numpy.save({"a": np.zeros((4,), np.float16), "b": np.int64(3).reshape(1)}),
  )


@functools.cache
def npz() -> tuple[bytes, ...]:
  """Both layouts: plain arrays, and JPEG scans that share a header."""
  pixels = np.stack([_pixels(3, seed) for seed in range(4)])
  names = {"labels": np.arange(4) % 2, "names": np.array([f"n{i}" for i in range(4)])}
  plain = {"images": pixels, **names, "classes": np.array(["a", "b"])}
  codes = [_saved(Image.fromarray(image), "JPEG", quality=75) for image in pixels]
  length = len(codes[0])
  while any(code[:length] != codes[0][:length] for code in codes):
    length -= 1
  scans = [code[length:] for code in codes]
  packed = {
    "header": np.frombuffer(codes[0][:length], np.uint8),
    "payload": np.frombuffer(b"".join(scans), np.uint8),
    "offsets": np.cumsum([0, *map(len, scans)]),
    "labels": np.arange(4) % 2,
  }
  made = []
  for arrays in (plain, packed):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    made.append(buffer.getvalue())
  members = {}
  with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, body in members.items():
      archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
  return (*made, buffer.getvalue())
