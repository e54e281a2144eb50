"""Photoshop's resources: IPTC of every container."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image, ImageCms

from tests.data.carrying import SECRET, png_of, read_file, saved_chunks
from udp_jax.data import images, photoshop


def test_iptc_of_png_profiles_and_tiff_tags_is_carried(tmp_path: Path) -> None:
  iptc = b"\x1c\x02\x74\x00\x0a(c) Artist" + b"\x1c\x02\x50\x00\x04Anna"
  wrapped = photoshop.resource(0x0404, iptc)
  for data in (iptc, wrapped):
    text = zlib.compress(photoshop.raw_profile("iptc", data))
    picture = read_file(tmp_path, png_of((b"zTXt", b"Raw profile type iptc\0\0" + text)), "a.png")
    saved = saved_chunks(tmp_path, picture)[b"zTXt"][0].split(b"\0\0", 1)[1]
    assert photoshop.from_raw_profile(zlib.decompress(saved)) == wrapped
  SECRET.save(
    tmp_path / "a.tif",
    tiffinfo={33723: iptc, 315: "An Artist", 270: "a title"},
    dpi=(300, 300),
    icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
  )
  picture = images.read_image(tmp_path / "a.tif")
  assert picture.notes == () and picture.icc_profile
  chunks = saved_chunks(tmp_path, picture)
  saved = zlib.decompress(chunks[b"zTXt"][0].split(b"\0\0", 1)[1])
  assert photoshop.from_raw_profile(saved) == wrapped
  assert struct.unpack(">IIB", chunks[b"pHYs"][0]) == (11811, 11811, 1)
  with Image.open(tmp_path / "saved.png") as image:
    exif = image.getexif()
    assert exif[315] == "An Artist" and exif[270] == "a title" and 256 not in exif
    assert image.info["icc_profile"] == picture.icc_profile
