"""Protects a folder of pictures at full resolution with any method.

  python -m experiments.protect --input=PICTURES --output=PROTECTED --method=eudp --model=tiny_ldm

Pictures may have any size: they are cut into overlapping tiles of the model's size. The saved PNG
files are lossless and keep size, names, transparency, colour profile, EXIF, XMP, IPTC, texts,
resolution and captions (metadata.jsonl, metadata.csv, .txt and .caption files); grey pictures stay
grey. Previews of the clean picture, GPS positions and serial numbers are removed;
`python -m udp_jax.data.metadata` prints what happens to each kind of metadata.
The upright 8-bit reference is kept in PROTECTED.work/clean, so that
  python -m experiments.verify --clean=PROTECTED.work/clean --protected=PROTECTED --radius_255=16
checks the budget. --model is the model to protect against; the manifest says how much that is
worth. The default config is `folder`. After a kill, the same command continues at the next file or
in the middle of the work on a group of files. On a finished output, methods that do not train a
surrogate make only the missing files: those of added or changed pictures, and deleted ones.
--overwrite replaces only files that an earlier run wrote: no file whose bytes differ from that
run's, and none that may be the last copy of a picture.

Methods that train a surrogate (udp, eudp) learn from all pictures together and hold all of their
tiles in memory; other methods work on 8 pictures at a time. --files_at_a_time sets another number:
fewer pictures need less memory. A picture has at most 100 megapixels and no side above 100,000
pixels; work on a picture of 100 megapixels takes about 7 GiB of memory.

--resize centre-crops and resizes every picture to the model's size instead, as studies of small
models need; sources that are not folders (builtin, npz:, cifar10:, tfds:) are always resized.
"""

from udp_jax.commands.protect import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
  start()
