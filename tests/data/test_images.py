"""Reading any image file that a user may have, and writing PNG."""

from __future__ import annotations

import errno
import io
import itertools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from udp_jax.data import images
from udp_jax.errors import BadDataError, MissingDataError, OutputError
from udp_jax.runtime import files


def _pixels(height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _smooth(height: int = 24, width: int = 36) -> np.ndarray:
  y, x = np.mgrid[:height, :width]
  return np.stack([y * 8, x * 6, (x + y) * 4], -1).clip(0, 255).astype(np.uint8)


def _saved(picture: images.Picture) -> dict:
  """Arguments of `write_png` for a picture."""
  return {key: value for key, value in picture._asdict().items() if key != "notes"}


def _srgb_profile() -> bytes:
  return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_files_read_exactly(tmp_path: Path, suffix: str) -> None:
  pixels = _pixels()
  options = {"lossless": True} if suffix == ".webp" else {}
  Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **options)
  picture = images.read_image(tmp_path / f"a{suffix}")
  np.testing.assert_array_equal(picture.pixels, pixels)
  assert picture.pixels.dtype == np.uint8
  assert picture.alpha is None
  assert picture.notes == ()
  assert not images.is_lossy(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_read_closely_and_are_known_as_lossy(tmp_path: Path, suffix: str) -> None:
  Image.fromarray(_smooth()).save(tmp_path / f"a{suffix}", quality=95)
  difference = images.read_pixels(tmp_path / f"a{suffix}").astype(int) - _smooth()
  assert np.abs(difference).mean() < 4
  assert images.is_lossy(tmp_path / f"a{suffix}")


def test_lossy_webp_with_alpha_is_known_as_lossy(tmp_path: Path) -> None:
  rgba = np.concatenate([_smooth(), _smooth()[..., :1]], -1)
  Image.fromarray(rgba).save(tmp_path / "lossy.webp", quality=50)
  Image.fromarray(rgba).save(tmp_path / "lossless.webp", lossless=True, exif=Image.Exif())
  assert images.is_lossy(tmp_path / "lossy.webp")
  assert not images.is_lossy(tmp_path / "lossless.webp")


def test_truncated_files_are_named(tmp_path: Path) -> None:
  for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif", ".gif"):
    path = tmp_path / f"broken{suffix}"
    Image.fromarray(_pixels()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(BadDataError, match=rf"broken\{suffix}: .*(damaged|not a PNG)"):
      images.read_image(path)


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"", "empty"),
    (b"hello", "not a PNG"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged|not a PNG"),
  ],
)
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
  (tmp_path / "a.png").write_bytes(content)
  with pytest.raises(BadDataError, match=f"a.png: .*({reason})"):
    images.read_image(tmp_path / "a.png")


def test_corrupt_compressed_data_is_one_line(tmp_path: Path) -> None:
  Image.fromarray(_pixels()).save(tmp_path / "a.png")
  content = bytearray((tmp_path / "a.png").read_bytes())
  content[60:90] = b"\xff" * 30
  (tmp_path / "a.png").write_bytes(content)
  with pytest.raises(BadDataError, match="a.png") as caught:
    images.read_image(tmp_path / "a.png")
  assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
  with pytest.raises(MissingDataError, match="nothing.png"):
    images.read_image(tmp_path / "nothing.png")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  Image.fromarray(_pixels()).save(tmp_path / "a.png")

  def refuse(*args: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")

  monkeypatch.setattr(Image, "open", refuse)
  with pytest.raises(BadDataError, match="a.png: permission denied"):
    images.read_image(tmp_path / "a.png")


def test_misnamed_file_is_read_by_content(tmp_path: Path) -> None:
  Image.fromarray(_pixels()).save(tmp_path / "a.jpg", format="PNG")
  picture = images.read_image(tmp_path / "a.jpg")
  np.testing.assert_array_equal(picture.pixels, _pixels())
  assert picture.notes == ("named .jpg but holds PNG",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_reduced_to_nearest_level(tmp_path: Path, suffix: str) -> None:
  levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  Image.fromarray(levels).save(tmp_path / f"a{suffix}")
  picture = images.read_image(tmp_path / f"a{suffix}")
  expected = np.rint(levels.astype(np.float64) / 65535 * 255)
  np.testing.assert_array_equal(picture.pixels, np.repeat(expected[..., None], 3, -1))
  assert "16-bit reduced to 8" in picture.notes


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_alpha_keeps_its_two_channels(tmp_path: Path, bits: int) -> None:
  levels = np.arange(40, dtype=np.uint16).reshape(4, 5, 2) * 6
  rows = levels.astype(np.uint8) if bits == 8 else (levels * 257).astype(">u2")
  data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
  header = struct.pack(">IIBBBBB", 5, 4, bits, 4, 0, 0, 0)
  path = tmp_path / "a.png"
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + b"".join(
      struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
      for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
  )
  picture = images.read_image(path)
  assert picture.notes == (("16-bit reduced to 8",) if bits == 16 else ())
  np.testing.assert_array_equal(picture.pixels, np.repeat(levels[..., :1], 3, -1))
  np.testing.assert_array_equal(picture.alpha, levels[..., 1])
  fields = {key: value for key, value in picture._asdict().items() if key != "notes"}
  with Image.open(io.BytesIO(images.encode_png(**fields))) as saved:
    assert saved.mode == "LA"


def test_16_bit_colour_is_reduced_and_noted(tmp_path: Path) -> None:
  pixels = _pixels(4, 5)
  rows = (pixels.astype(np.uint16) * 257).astype(">u2").reshape(4, -1)
  raw = b"".join(b"\0" + row.tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
  content = b"\x89PNG\r\n\x1a\n"
  for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
    content += struct.pack(">I", len(data)) + kind + data
    content += struct.pack(">I", zlib.crc32(kind + data))
  (tmp_path / "a.png").write_bytes(content)
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, pixels)
  assert "16-bit reduced to 8" in picture.notes


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_samples_are_refused(tmp_path: Path, kind: type) -> None:
  Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
  with pytest.raises(BadDataError, match="32-bit"):
    images.read_image(tmp_path / "a.tif")


def test_grey_and_one_bit(tmp_path: Path) -> None:
  grey = _pixels()[..., 0]
  Image.fromarray(grey).save(tmp_path / "grey.png")
  Image.fromarray(grey > 127).save(tmp_path / "bits.png")
  expected = np.repeat(grey[..., None], 3, -1)
  np.testing.assert_array_equal(images.read_pixels(tmp_path / "grey.png"), expected)
  np.testing.assert_array_equal(
    images.read_pixels(tmp_path / "bits.png"), np.where(expected > 127, 255, 0)
  )


def test_grey_with_alpha(tmp_path: Path) -> None:
  plane = _pixels()[..., :2]
  Image.fromarray(plane, "LA").save(tmp_path / "a.png")
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, np.repeat(plane[..., :1], 3, -1))
  np.testing.assert_array_equal(picture.alpha, plane[..., 1])


def test_palette_with_transparency(tmp_path: Path) -> None:
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 200, 100, 50])
  image.putpixel((1, 0), 1)
  image.save(tmp_path / "plain.png")
  image.save(tmp_path / "clear.png", transparency=bytes([255, 77]))
  for name, alpha in (("plain", None), ("clear", [[255, 77]])):
    picture = images.read_image(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(picture.pixels, [[[10, 20, 30], [200, 100, 50]]])
    if alpha is None:
      assert picture.alpha is None
    else:
      np.testing.assert_array_equal(picture.alpha, alpha)


def test_rgba_keeps_alpha_and_the_colour_below_it(tmp_path: Path) -> None:
  pixels = np.concatenate([_pixels(), _pixels(seed=1)[..., :1]], -1)
  pixels[0, 0, 3] = 0
  Image.fromarray(pixels).save(tmp_path / "a.png")
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, pixels[..., :3])
  np.testing.assert_array_equal(picture.alpha, pixels[..., 3])


def test_cmyk_without_profile_is_pillows_rgb(tmp_path: Path) -> None:
  cmyk = Image.fromarray(_smooth()).convert("CMYK")
  cmyk.save(tmp_path / "a.tif")
  picture = images.read_image(tmp_path / "a.tif")
  np.testing.assert_array_equal(picture.pixels, np.asarray(cmyk.convert("RGB")))
  assert picture.icc_profile is None
  assert any("CMYK" in note for note in picture.notes)


def test_cmyk_with_unusable_profile_is_read_and_noted(tmp_path: Path) -> None:
  cmyk = Image.fromarray(_smooth()).convert("CMYK")
  cmyk.save(tmp_path / "a.jpg", icc_profile=_srgb_profile())  # an RGB profile on CMYK data
  picture = images.read_image(tmp_path / "a.jpg")
  assert picture.pixels.shape == (24, 36, 3)
  assert picture.icc_profile is None
  assert any("unusable ICC" in note for note in picture.notes)


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
  """A minimal ICC version 2 profile."""
  table, body = struct.pack(">I", len(tags)), b""
  start = 128 + 4 + 12 * len(tags)
  for name, content in tags.items():
    content += b"\0" * (-len(content) % 4)
    table += name + struct.pack(">II", start + len(body), len(content))
    body += content
  header = struct.pack(
    ">I4sI4s4s4s", start + len(body), b"", 0x02400000, b"prtr", space, connection
  )
  header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0")
  header += struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)  # the D50 white point
  return header.ljust(128, b"\0") + table + body


def test_cmyk_goes_through_its_own_profile(tmp_path: Path) -> None:
  # The profile says that full cyan is a neutral grey of lightness 50 and that black ink is black.
  # In sRGB that grey is level 119, where plain CMYK arithmetic gives (0, 255, 255).
  ramp = bytes(range(256))
  corners = itertools.product((0, 1), repeat=4)
  grid = b"".join(
    bytes([0 if black else 128 if cyan else 255, 128, 128]) for cyan, _, _, black in corners
  )
  identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
  table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
  profile = _profile(b"CMYK", b"Lab ", {b"A2B0": table})
  image = Image.new("CMYK", (2, 1))
  image.putpixel((0, 0), (255, 0, 0, 0))
  image.save(tmp_path / "a.tif", icc_profile=profile)
  picture = images.read_image(tmp_path / "a.tif")
  np.testing.assert_allclose(picture.pixels, [[[119] * 3, [255] * 3]], atol=2)
  assert picture.icc_profile is None
  assert "CMYK converted to sRGB by its ICC profile" in picture.notes


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_stays_grey_with_its_own_profile(tmp_path: Path, mode: str) -> None:
  # A linear grey: half the light is level 188 in sRGB. The level stays, and so does the profile.
  curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
  white = b"XYZ \0\0\0\0" + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
  profile = _profile(b"GRAY", b"XYZ ", {b"kTRC": curve, b"wtpt": white})
  Image.new(mode, (3, 2), 128 if mode == "L" else (128, 9)).save(
    tmp_path / "a.png", icc_profile=profile
  )
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, np.full((2, 3, 3), 128))
  assert picture.icc_profile == profile and picture.grey and picture.notes == ()
  assert (picture.alpha is None) == (mode == "L")
  images.write_png(tmp_path / "out.png", **_saved(picture))
  with Image.open(tmp_path / "out.png") as saved:
    assert saved.mode == mode and saved.info["icc_profile"] == profile
  again = images.read_image(tmp_path / "out.png")
  np.testing.assert_array_equal(again.pixels, picture.pixels)
  assert again.grey and again.icc_profile == profile


def test_profile_of_another_colour_space_is_left_out(tmp_path: Path) -> None:
  profile = _profile(b"GRAY", b"XYZ ", {})
  Image.fromarray(_pixels()).save(tmp_path / "a.png", icc_profile=profile)
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, _pixels())
  assert picture.icc_profile is None
  assert any("ICC profile of another colour space left out" in note for note in picture.notes)


def test_profile_is_kept_and_pixels_are_not_converted(tmp_path: Path) -> None:
  profile = _srgb_profile()
  Image.fromarray(_pixels()).save(tmp_path / "a.png", icc_profile=profile)
  picture = images.read_image(tmp_path / "a.png")
  assert picture.icc_profile == profile
  np.testing.assert_array_equal(picture.pixels, _pixels())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
  tags = Image.Exif()
  tags[0x0112] = orientation
  tags[0x010E] = "a painting"
  Image.fromarray(_smooth()).save(tmp_path / f"a{suffix}", exif=tags, quality=95)
  picture = images.read_image(tmp_path / f"a{suffix}")
  turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
  expected = np.rot90(_smooth(), turns)
  assert picture.pixels.shape == expected.shape
  assert np.abs(picture.pixels.astype(int) - expected).mean() < 5
  assert ("orientation applied to the pixels" in picture.notes) == (orientation != 1)
  images.write_png(tmp_path / "out.png", picture.pixels, exif=picture.exif)
  with Image.open(tmp_path / "out.png") as saved:
    kept = saved.getexif()
    assert 0x0112 not in kept
    assert kept[0x010E] == "a painting"
  again = images.read_image(tmp_path / "out.png")
  np.testing.assert_array_equal(again.pixels, picture.pixels)


def test_damaged_exif_is_left_out(tmp_path: Path) -> None:
  Image.fromarray(_pixels()).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, _pixels())
  assert picture.exif is None
  assert any("EXIF" in note for note in picture.notes)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
  frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
  options = {"lossless": True} if suffix == ".webp" else {}
  frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
  picture = images.read_image(tmp_path / f"a{suffix}")
  np.testing.assert_array_equal(picture.pixels, np.asarray(frames[0]))
  assert "first of 3 frames" in picture.notes


def test_one_pixel(tmp_path: Path) -> None:
  Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
  picture = images.read_image(tmp_path / "a.png")
  np.testing.assert_array_equal(picture.pixels, [[[1, 2, 3]]])
  large = images.resize_picture(picture, 8)
  np.testing.assert_array_equal(large.pixels, np.broadcast_to([1, 2, 3], (8, 8, 3)))


def _huge_png(path: Path, width: int, height: int) -> None:
  """A valid header announcing many pixels, without the pixels."""
  header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  data = b"IDAT" + zlib.compress(b"")
  content = b"\x89PNG\r\n\x1a\n"
  for chunk in (header, data, b"IEND"):
    content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
  path.write_bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(99_999_999, 1), (1, 99_999_999), (50_000_000, 2)])
def test_a_side_that_no_picture_has_is_refused_before_decoding(
  tmp_path: Path, width: int, height: int
) -> None:
  """Within 100 megapixels, and yet gigabytes: decoders keep a pointer for each line."""
  _huge_png(tmp_path / "strip.png", width, height)
  with pytest.raises(BadDataError, match="strip.png: .*a side of more than 100,000 pixels"):
    images.read_image(tmp_path / "strip.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 14_000, 60_000])
def test_more_than_100_megapixels_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
  _huge_png(tmp_path / "huge.png", side, side)
  with pytest.raises(BadDataError, match="huge.png: .*more than 100 megapixels"):
    images.read_image(tmp_path / "huge.png")


def test_pixel_limit_is_an_argument(tmp_path: Path) -> None:
  Image.fromarray(_pixels(10, 10)).save(tmp_path / "a.png")
  assert images.read_image(tmp_path / "a.png", max_pixels=100).pixels.shape == (10, 10, 3)
  with pytest.raises(BadDataError, match="10x10"):
    images.read_image(tmp_path / "a.png", max_pixels=99)


def test_resize_crops_the_centre_and_averages_areas() -> None:
  pixels = _pixels(8, 12)
  resized = images.resize_picture(images.Picture(pixels, alpha=pixels[..., 0]), 4)
  centre = pixels[:, 2:10].astype(np.float64)
  means = centre.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(resized.pixels, means, atol=0.5 + 1e-6)
  np.testing.assert_array_equal(resized.alpha, resized.pixels[..., 0])
  assert resized.notes == ("resized from 12x8",)


def test_resize_to_the_same_size_changes_nothing() -> None:
  picture = images.Picture(_pixels(8, 8))
  assert images.resize_picture(picture, 8) is picture


def test_write_png_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
  pixels, alpha = _pixels(), _pixels(seed=2)[..., 0]
  for name in ("a", "b"):
    images.write_png(tmp_path / f"x/{name}.png", pixels, alpha=alpha, icc_profile=_srgb_profile())
  picture = images.read_image(tmp_path / "x/a.png")
  np.testing.assert_array_equal(picture.pixels, pixels)
  np.testing.assert_array_equal(picture.alpha, alpha)
  assert (tmp_path / "x/a.png").read_bytes() == (tmp_path / "x/b.png").read_bytes()
  assert sorted(os.listdir(tmp_path / "x")) == ["a.png", "b.png"]


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_write_png_refuses_other_arrays(tmp_path: Path, wrong: np.ndarray) -> None:
  with pytest.raises(ValueError, match="uint8"):
    images.write_png(tmp_path / "a.png", wrong)


@pytest.mark.parametrize(
  ("code", "words"),
  [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
)
def test_failed_writing_is_one_line_and_leaves_nothing(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
  def fail(descriptor: int) -> None:
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OutputError, match=f"a.png: .*{words}") as caught:
    images.write_png(tmp_path / "a.png", _pixels())
  assert "\n" not in str(caught.value)
  assert os.listdir(tmp_path) == []


def test_failed_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  files.write_bytes(tmp_path / "a", b"old")

  def fail(source: object, target: object) -> None:
    raise OSError(errno.ENOSPC, "full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OutputError):
    files.write_bytes(tmp_path / "a", b"new")
  assert (tmp_path / "a").read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["a"]


def test_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
  (tmp_path / "x").write_text("a file")
  with pytest.raises(OutputError, match="a file stands where a folder is needed"):
    images.write_png(tmp_path / "x/a.png", _pixels())


def test_encoded_png_opens_elsewhere() -> None:
  with Image.open(io.BytesIO(images.encode_png(_pixels()))) as image:
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), _pixels())
