"""Reads and writes image files: 8-bit colour and all that is needed to save it looking the same.

Pixels are uint8 (H, W, 3). Colours change only if a file has no 8-bit RGB or grey of its own
(palette, CMYK, more than 8 bits), and then a note says so. `metadata.TABLE` decides about
everything else that a file holds.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from udp_jax.data import containers, metadata
from udp_jax.data.containers import Chunk
from udp_jax.data.naming import FORMATS
from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.runtime import files

MAX_PIXELS = 100_000_000
# Decoders keep a pointer or a buffer per line: a picture of 100 million pixels with a side of 1
# takes ten seconds and gigabytes. No real picture has a side this long.
MAX_SIDE = 100_000

# Pillow opens MPO, the two-picture JPEG of some cameras, through its JPEG decoder.
_DECODERS = tuple(kind for kind in FORMATS if kind != "MPO")

_ORIENTATION = 0x0112
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Other PNG chunks are inserted here, after the signature and the header.
_PNG_HEADER = 33
# PNG readers commonly refuse larger profiles.
_MAX_PROFILE = 1 << 20
_BITS_PER_SAMPLE = 258  # TIFF tag

# Errors that Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  TypeError,
  KeyError,
  IndexError,
  EOFError,
  OverflowError,
  MemoryError,
  ZeroDivisionError,
  struct.error,
  zlib.error,
)


class Picture(NamedTuple):
  """One decoded image file.

  Attributes:
    pixels: uint8 (H, W, 3), upright (the EXIF orientation is applied), in the colour space of
      `icc_profile` (sRGB if None).
    alpha: uint8 (H, W) or None; colours are not premultiplied.
    icc_profile: the RGB or grey profile to save beside the pixels, or None.
    exif: the EXIF block to save, without orientation, previews and position, or None.
    notes: descriptions of what reading changed, converted or left out.
    chunks: PNG chunks (type, data) to save beside the pixels: colour, resolution, XMP, texts.
    grey: whether the file has, and is saved with, one colour channel; `pixels` repeats it thrice.
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None
  icc_profile: bytes | None = None
  exif: bytes | None = None
  notes: tuple[str, ...] = ()
  chunks: tuple[Chunk, ...] = ()
  grey: bool = False


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Picture:
  """Reads a PNG, JPEG, WebP, BMP, TIFF or GIF file, recognised by its content, not its name.

  Args:
    path: the file.
    max_pixels: larger images are refused before they are decoded. Pillow itself refuses more than
      about 179 megapixels, whatever this is.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the file is unreadable, truncated, empty, too large or of another kind.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   write_png(f"{place}/a.png", np.full((4, 6, 3), 7, np.uint8))
  ...   read_image(f"{place}/a.png").pixels.shape
  (4, 6, 3)
  """
  path = Path(path)
  notes: list[str] = []
  try:
    found = containers.read(path)
    source = path if found.stream is None else io.BytesIO(found.stream)
    with Image.open(source, formats=_DECODERS) as image:
      kind = image.format or ""
      if max(image.size) > MAX_SIDE:
        raise BadDataError(
          f"{path}: {image.width}x{image.height}: a side of more than {MAX_SIDE:,} pixels; make it "
          "smaller first"
        )
      if image.width * image.height > max_pixels:
        raise BadDataError(
          f"{path}: {image.width}x{image.height} is more than {max_pixels / 1e6:g} megapixels; "
          "make it smaller first"
        )
      if path.suffix.lower() not in FORMATS[kind]:
        notes.append(f"named {path.suffix or 'without extension'} but holds {kind}")
      if getattr(image, "is_animated", False):
        notes.append(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]  # by plugin
        image.seek(0)
      image.load()
      if _has_16_bits(image, path):
        notes.append("16-bit reduced to 8")
      # Pillow has already turned TIFF pictures while loading them.
      turned = image.getexif().get(_ORIENTATION, 1) if kind == "TIFF" else found.orientation
      upright = image.transpose(_TURNS[turned]) if turned in _TURNS else image
      if kind == "PNG" and image.mode == "RGBA" and _is_grey_with_alpha(path):
        upright = upright.convert("LA")  # This is exact: the three channels are equal.
      pixels, alpha, icc_profile, grey = _to_rgb(upright, kind, found.icc_profile, path, notes)
  except FileNotFoundError as error:
    raise MissingDataError(f"{path}: no such file") from error
  except PermissionError as error:
    raise BadDataError(f"{path}: permission denied; make the file readable") from error
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise BadDataError(
      f"{path}: more than {max_pixels / 1e6:g} megapixels; make it smaller first"
    ) from error
  except Image.UnidentifiedImageError as error:
    empty = path.stat().st_size == 0
    what = "the file is empty" if empty else "not a PNG, JPEG, WebP, BMP, TIFF or GIF image"
    raise BadDataError(f"{path}: {what}; replace or remove it") from error
  except _DECODER_ERRORS as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise BadDataError(f"{path}: damaged or truncated ({reason}); replace it") from error
  notes += found.notes
  return Picture(pixels, alpha, icc_profile, found.exif, tuple(notes), found.chunks, grey)


def read_pixels(path: str | os.PathLike) -> np.ndarray:
  """Reads the uint8 (H, W, 3) pixels of an image file; errors as in `read_image`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   write_png(f"{place}/a.png", np.full((1, 1, 3), 7, np.uint8))
  ...   read_pixels(f"{place}/a.png").tolist()
  [[[7, 7, 7]]]
  """
  return read_image(path).pixels


def is_grey(pixels: np.ndarray) -> np.ndarray:
  """Returns whether the three channels are equal: uint8 (..., H, W, 3) -> (...,) bool.

  >>> bool(is_grey(np.full((2, 2, 3), 7, np.uint8)))
  True
  """
  same = (pixels[..., 0] == pixels[..., 1]) & (pixels[..., 1] == pixels[..., 2])
  return same.all(axis=(-2, -1))


def as_grey(pixels: np.ndarray) -> np.ndarray:
  """Replaces all three channels by their rounded mean, uint8 (..., 3).

  >>> as_grey(np.array([[[0, 3, 6]]], np.uint8)).tolist()
  [[[3, 3, 3]]]
  """
  mean = np.rint(pixels.astype(np.float32).mean(axis=-1, keepdims=True)).astype(np.uint8)
  return np.broadcast_to(mean, pixels.shape).copy()


def resize_picture(picture: Picture, size: int) -> Picture:
  """Crops the centre square and resizes it to (size, size), rounding once to 8 bits.

  Shrinking averages areas (box filter: no ringing, no aliasing); enlarging uses Lanczos.

  >>> resize_picture(Picture(np.zeros((6, 8, 3), np.uint8)), 4).pixels.shape
  (4, 4, 3)
  """
  height, width = picture.pixels.shape[:2]
  if height == width == size:
    return picture
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  box = (left, top, left + side, top + side)
  resample = Image.Resampling.BOX if side > size else Image.Resampling.LANCZOS

  def resize(plane: np.ndarray) -> np.ndarray:
    # Use float: Pillow's 8-bit resize rounds after each of its two passes.
    resized = Image.fromarray(plane).crop(box).convert("F").resize((size, size), resample)
    return np.rint(np.asarray(resized)).clip(0, 255).astype(np.uint8)

  return picture._replace(
    pixels=np.stack([resize(picture.pixels[..., i]) for i in range(3)], axis=-1),
    alpha=None if picture.alpha is None else resize(picture.alpha),
    notes=(*picture.notes, f"resized from {width}x{height}"),
  )


def encode_png(
  pixels: np.ndarray,
  *,
  alpha: np.ndarray | None = None,
  icc_profile: bytes | None = None,
  exif: bytes | None = None,
  chunks: Sequence[Chunk] = (),
  grey: bool = False,
) -> bytes:
  """Encodes uint8 (H, W, 3) pixels as PNG; the same input gives the same bytes.

  Args:
    pixels: uint8 (H, W, 3).
    alpha: uint8 (H, W), or None.
    icc_profile: an RGB profile, or a grey one with `grey`.
    exif: an EXIF block, with or without its "Exif" prefix.
    chunks: further PNG chunks (type, data), in this order.
    grey: whether to save one colour channel.

  Raises:
    ValueError: an array has the wrong shape, or channels differ although `grey` is set.

  >>> encode_png(np.zeros((2, 2, 3), np.uint8))[:4]
  b'\\x89PNG'
  """
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
    raise ValueError(f"pixels must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
  if grey:
    if not is_grey(pixels):
      raise ValueError("the channels of a grey picture differ")
    pixels = pixels[..., :1]
  if alpha is not None:
    if alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]:
      raise ValueError(f"alpha must be uint8 {pixels.shape[:2]}, got {alpha.dtype} {alpha.shape}")
    pixels = np.concatenate([pixels, alpha[..., None]], axis=-1)
  if pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  beside: list[Chunk] = list(chunks)
  if icc_profile is not None:
    beside.insert(0, (b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
  if exif is not None:
    beside.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
  whole = buffer.getvalue()
  return whole[:_PNG_HEADER] + b"".join(map(_chunk, beside)) + whole[_PNG_HEADER:]


def _chunk(chunk: Chunk) -> bytes:
  kind, data = chunk
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(
  path: str | os.PathLike,
  pixels: np.ndarray,
  *,
  alpha: np.ndarray | None = None,
  icc_profile: bytes | None = None,
  exif: bytes | None = None,
  chunks: Sequence[Chunk] = (),
  grey: bool = False,
) -> None:
  """Writes a PNG file atomically and creates its folders; arguments as in `encode_png`.

  Raises:
    OutputError: the file cannot be written; no part of it is left behind.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   write_png(f"{place}/new/a.png", np.zeros((2, 2, 3), np.uint8))
  ...   is_lossy(f"{place}/new/a.png")
  False
  """
  content = encode_png(
    pixels, alpha=alpha, icc_profile=icc_profile, exif=exif, chunks=chunks, grey=grey
  )
  files.write_bytes(path, content)


def is_lossy(path: str | os.PathLike) -> bool:
  """Returns whether a file's coding is lossy: JPEG, or WebP without a lossless bit stream.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   Image.new("RGB", (8, 8)).save(f"{place}/a.jpg")
  ...   is_lossy(f"{place}/a.jpg")
  True
  """
  with open(path, "rb") as file:
    head = file.read(16)
    if head[:2] == b"\xff\xd8":
      return True
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
      return False
    # The extended layout puts other chunks before the image chunk, "VP8 " (lossy) or "VP8L".
    return head[12:16] == b"VP8 " or (head[12:16] == b"VP8X" and b"VP8L" not in file.read())


def _to_rgb(
  image: Image.Image, kind: str, profile: bytes | None, path: Path, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None, bytes | None, bool]:
  """Converts any mode to RGB; returns pixels, alpha, their profile, and whether they are grey."""
  space = profile[16:20] if profile else b""
  transparent = image.info.get("transparency")
  alpha: np.ndarray | None = None
  mode = image.mode
  if mode in ("F", "I") and not (mode == "I" and kind == "PNG"):
    raise BadDataError(f"{path}: 32-bit samples are not supported; save it with 8 or 16 bits")
  grey = mode[:1] in ("1", "L", "I") and mode != "LAB"
  if mode == "1":
    notes.append("1 bit a pixel saved as 8-bit grey")
  if mode.startswith("I"):
    levels = np.asarray(image).astype(np.uint32)
    if transparent is not None:
      alpha = np.where(levels == transparent, 0, 255).astype(np.uint8)
    # 65535 = 257 * 255: round to the nearest of 256 levels, so that 8-bit values stored as v * 257
    # are recovered exactly.
    image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
  elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or transparent is not None:
    if mode == "La":
      image = image.convert("LA")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"))
  if mode in ("P", "PA") and kind != "GIF":
    notes.append("palette saved as RGB")
  if mode in ("CMYK", "LAB"):
    image, profile = _convert_by_profile(image, profile, notes), None
  elif profile and space != (b"GRAY" if grey else b"RGB "):
    notes.append(metadata.note("icc_unfit"))
    profile = None
  elif profile and len(profile) > _MAX_PROFILE:
    image = _convert_by_profile(image.convert("L" if grey else "RGB"), profile, notes)
    profile, grey = None, False
  return np.array(image.convert("RGB")), alpha, profile, grey


def _convert_by_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
  """Converts an image to sRGB, through its own profile if that is usable."""
  try:
    source: ImageCms.core.CmsProfile | ImageCms.ImageCmsProfile
    if image.mode == "LAB":
      source = ImageCms.createProfile("LAB")
    elif profile:
      source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    else:
      notes.append("CMYK without a profile converted to RGB")
      return image.convert("RGB")
    converted = ImageCms.profileToProfile(
      image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
  except (ImageCms.PyCMSError, OSError, ValueError) as error:
    notes.append(f"unusable ICC profile ignored ({' '.join(str(error).split())})")
    return image.convert("RGB")
  notes.append(f"{image.mode} converted to sRGB by its ICC profile")
  return converted if converted is not None else image


def _is_grey_with_alpha(path: Path) -> bool:
  """Returns whether a PNG file has two channels (Pillow decodes 16-bit ones to four)."""
  with open(path, "rb") as file:
    return file.read(26)[25:] == b"\x04"  # the colour type in the first chunk


def _has_16_bits(image: Image.Image, path: Path) -> bool:
  """Returns whether a file has 16-bit samples (Pillow reduces 16-bit colour while decoding)."""
  if image.mode.startswith("I;16"):
    return True
  if image.format == "PNG":
    with open(path, "rb") as file:
      return file.read(25)[24:] == b"\x10"  # the bit depth in the first chunk
  if image.format == "TIFF":
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]  # TIFF plugin's own
    return 16 in (bits if isinstance(bits, tuple) else (bits,))
  return False


def read_large(path: Path) -> Picture:
  """Runs `read_image` on large pictures without Pillow's warning from 89 megapixels on.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   write_png(f"{place}/a.png", np.zeros((2, 3, 3), np.uint8))
  ...   read_large(Path(place) / "a.png").pixels.shape
  (2, 3, 3)
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return read_image(path)
