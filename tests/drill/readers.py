"""What is done with a damaged file: everything that the programs do with a file of its kind.

A reader here raises nothing but `UserError` unless it found a bug. Good pictures lie beside each
file; `Folder.check` says whether they are still there and still usable.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.drill import mutate, samples
from udp_jax.data import (
  captions,
  folder,
  images,
  manifest,
  marks,
  masks,
  npz,
  output,
  picture_files,
  picture_folder,
)
from udp_jax.data.picture_files import PictureFile
from udp_jax.errors import UserError

# Larger ones are read, but not saved again: that is the time of zlib alone.
_SAVED_PIXELS = 1 << 20


class Finding(Exception):
  """Something that should not have happened, though nothing was raised."""


class Kind(NamedTuple):
  """Files of one format.

  Attributes:
    samples: good ones.
    mutators: what breaks them.
    name: of the file in its folder; {} is the number of the file.
    use: function of (folder, path) that does what the programs do.
    together: whether damaged files of this kind lie together in one folder.
  """

  samples: Callable[[], tuple[bytes, ...]]
  mutators: list[mutate.Mutator]
  name: str
  use: Callable[[Folder, Path], None]
  together: bool = False


class Folder:
  """A working folder with good pictures, in which damaged files are tried."""

  def __init__(self, root: Path):
    """Makes the folder anew."""
    self.root, self.input, self.out = root, root / "in", root / "out"
    self.restore()

  def restore(self) -> None:
    """Makes the folder as it was in the beginning: the good pictures and nothing else."""
    shutil.rmtree(self.root, ignore_errors=True)
    self.input.mkdir(parents=True)
    generator = np.random.default_rng(0)
    self.pixels = {}
    for number, suffix in enumerate((".png", ".bmp", ".png")):
      levels = generator.integers(0, 256, (10, 9, 3), dtype=np.uint8)
      Image.fromarray(levels).save(self.input / f"good{number}{suffix}")
      self.pixels[f"good{number}"] = levels
    self._digests = self._good()

  def _good(self) -> dict[str, str]:
    return {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(self.input.glob("good*"))
      if path.suffix != ".txt"
    }

  def check_good(self) -> None:
    """Raises Finding unless the good files are there, byte for byte."""
    if (good := self._good()) != self._digests:
      changed = {n for n in self._digests if good.get(n) != self._digests[n]}
      raise Finding(f"good files lost or changed: {sorted(changed)}")

  def check(self) -> None:
    """Raises Finding unless the good files are as they were, and are found and can be used."""
    self.check_good()
    found = {file.name: file for file in picture_files.list_pictures(self.input).files}
    for name, levels in self.pixels.items():
      if name not in found:
        raise Finding(f"good picture {name} is not found any more")
      picture = images.read_large(found[name].path)
      if not np.array_equal(picture.pixels, levels):
        raise Finding(f"good picture {name} is read as something else")
      picture_folder.write(self.out, self.root / "records", name, picture, clean=levels)

  def clear(self) -> None:
    """Removes everything but the good pictures."""
    for path in self.root.rglob("*"):
      if path.is_file() and not (path.parent == self.input and path.name in self._digests):
        path.unlink()


def outcome(use: Callable[[Folder, Path], None], place: Folder, path: Path) -> str:
  """ "read" or "refused"; raises what the reader raises beside `UserError`."""
  try:
    use(place, path)
  except UserError:
    return "refused"
  return "read"


def _picture(place: Folder, path: Path) -> None:
  picture = images.read_large(path)
  images.is_lossy(path)
  if picture.pixels.size > 3 * _SAVED_PIXELS:
    return
  images.resize_picture(picture, 8)
  records = place.root / "records"
  bound = picture_folder.Bound(0)
  entry = picture_folder.write(
    place.out, records, "hostile", picture, clean=picture.pixels, bound=bound
  )
  again = images.read_large(place.out / "hostile.png")
  if not np.array_equal(again.pixels, picture.pixels) or entry["max_abs_255"] != 0:
    raise Finding("saved again, it has other pixels")


def _mask(place: Folder, path: Path) -> None:
  picture = PictureFile("good0", place.input / "good0.png", "good0.png", 12, 15, "")
  found = masks.find(path, [picture])
  if masks.read(found["good0"], picture).shape != (12, 15):
    raise Finding("a mask of another size")
  masks.sha256(found)


def _captions(place: Folder, path: Path) -> None:
  place.check()
  found = captions.read_captions(place.input)
  for name, text in found.items():
    if not isinstance(name, str) or not isinstance(text, str):
      raise Finding(f"a caption that is no text: {name!r}: {text!r}")
    # As manifests, records and tokenizers do.
    name.encode(), text.encode()


def _manifest(place: Folder, path: Path) -> None:
  marks.read_manifest(place.input)
  marks.is_complete(place.input)
  for overwrite in (False, True):
    try:
      output.check_output(place.input, overwrite=overwrite)
    except UserError:
      pass
  manifest.read_folder(place.input)


def _overwritten(place: Folder, path: Path) -> None:
  """A folder whose manifest lists pictures that are not the ones it was written for."""
  manifest.write_folder(place.input, place.pixels["good0"][None], ["new"], overwrite=True)


def _records(place: Folder, path: Path) -> None:
  picture_folder.write(
    place.out,
    place.root / "other",
    "good0",
    images.Picture(place.pixels["good0"]),
    clean=place.pixels["good0"],
  )
  found = picture_folder.finished(place.out, place.root / "records", ["good0"])
  if found:
    picture_folder.finish(place.out, list(found.values()), {"method": "x", "seed": 0})


def _record_samples() -> tuple[bytes, ...]:
  # Of the file that `_records` writes: a record counts only if it names its file's hash.
  content = images.encode_png(_good_pixels())
  entry = {"file": "good0.png", "sha256": hashlib.sha256(content).hexdigest(), "width": 9}
  return (json.dumps(entry | {"height": 10, "max_abs_255": 0, "psnr": None}).encode(),)


def _good_pixels() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (10, 9, 3), dtype=np.uint8)


def _config(place: Folder, path: Path) -> None:
  from experiments import _cli
  from udp_jax.data.image_set import ImageSet
  from udp_jax.studies import settings

  config = _cli.get_config("eudp", "folder")
  pictures = ImageSet(np.zeros((0, 1, 1, 3), np.uint8), (), origin={"sha256": "0"})
  settings.check(config, path.parent, pictures)


def _config_samples() -> tuple[bytes, ...]:
  from experiments import _cli
  from udp_jax.runtime import files

  config = json.loads(files.to_json(_cli.get_config("eudp", "folder").to_dict()))
  return (json.dumps(config | {"pictures": "0"}).encode(),)


def _model(place: Folder, path: Path) -> None:
  from udp_jax.models import factory

  (path.parent / "diffusion_pytorch_model.safetensors").write_bytes(_weights())
  factory.load(path.parent)


@functools.cache
def _weights() -> bytes:
  """Of the model that `_model_config` describes."""
  import jax
  import safetensors.numpy

  from udp_jax.models import weights
  from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
  from udp_jax.models.pixel import pixel_diffusion
  from udp_jax.ops import schedules

  model = pixel_diffusion(UNet2D(UNet2DConfig.from_dict(_model_config())), schedules.linear(10))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  return safetensors.numpy.save(weights.to_torch_names(params))


def _model_config() -> dict[str, Any]:
  return {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
  }


def _scheduler_config() -> dict[str, Any]:
  return {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
  }


def _scheduler(place: Folder, path: Path) -> None:
  from udp_jax.models import noise_scheduler

  config = noise_scheduler.load_scheduler_config(path.parent)
  if config is not None:
    noise_scheduler.schedule_from_config(config)


def _tensors(place: Folder, path: Path) -> None:
  from udp_jax.models import learned_tokens, lora_files, single_file, weights

  kernel = np.zeros((8, 8), np.float32)
  params = {"unet": {"down_blocks_0": {"attentions_0": {"to_q": {"kernel": kernel}}}}}
  refused = []
  for load in (
    lambda: learned_tokens.load_learned_token(path),
    lambda: lora_files.load_lora(path, params),
    lambda: dict(weights.load_pretrained(path.parent)[1]),
    lambda: single_file.open_file(path),
    lambda: single_file.open_vae(path),
  ):
    try:
      load()
    except UserError as error:
      refused.append(error)
  if len(refused) == 5:
    raise refused[0]


def _npz(place: Folder, path: Path) -> None:
  loaded = npz.load_npz(path, image_size=8, limit=2, seed=0, classes=None)
  if loaded.images.dtype != np.uint8 or loaded.images.shape[1:] != (8, 8, 3):
    raise Finding(f"images of {loaded.images.dtype} {loaded.images.shape}")


def _folder_set(place: Folder, path: Path) -> None:
  folder.load_folder(place.input, image_size=8, limit=None, seed=0, strict=False, classes=None)


def _text_beside(place: Folder, path: Path) -> None:
  _captions(place, path)
  _folder_set(place, path)


def _of_json(value: Callable[[], Any]) -> Callable[[], tuple[bytes, ...]]:
  return lambda: (json.dumps(value()).encode(),)


_MASKS = [*mutate.PNG, *mutate.BMP]
KINDS: Mapping[str, Kind] = {
  "png": Kind(samples.png, mutate.PNG, "in/h{}.png", _picture, True),
  "apng": Kind(samples.apng, mutate.APNG, "in/h{}.png", _picture, True),
  "jpeg": Kind(samples.jpeg, mutate.JPEG, "in/h{}.jpg", _picture, True),
  "mpo": Kind(samples.mpo, mutate.JPEG, "in/h{}.mpo", _picture, True),
  "webp": Kind(samples.webp, mutate.WEBP, "in/h{}.webp", _picture, True),
  "bmp": Kind(samples.bmp, mutate.BMP, "in/h{}.bmp", _picture, True),
  "tiff": Kind(samples.tiff, mutate.TIFF, "in/h{}.tif", _picture, True),
  "gif": Kind(samples.gif, mutate.GIF, "in/h{}.gif", _picture, True),
  "mask": Kind(lambda: samples.png() + samples.bmp(), _MASKS, "masks/h{}.png", _mask),
  "metadata.jsonl": Kind(samples.captions_jsonl, mutate.JSON, "in/metadata.jsonl", _text_beside),
  "metadata.csv": Kind(samples.captions_csv, mutate.TEXT, "in/metadata.csv", _text_beside),
  "caption .txt": Kind(samples.captions_txt, mutate.TEXT, "in/good0.txt", _text_beside),
  "manifest.json": Kind(_of_json(samples.manifest), mutate.JSON, "in/manifest.json", _manifest),
  "manifest.json, overwritten": Kind(
    _of_json(samples.manifest), mutate.JSON, "in/manifest.json", _overwritten
  ),
  "record": Kind(_record_samples, mutate.JSON, "records/good0.json", _records),
  "config.json": Kind(_config_samples, mutate.JSON, "work/config.json", _config),
  "model config.json": Kind(_of_json(_model_config), mutate.JSON, "model/config.json", _model),
  "scheduler_config.json": Kind(
    _of_json(_scheduler_config), mutate.JSON, "model/scheduler_config.json", _scheduler
  ),
  "safetensors": Kind(samples.tensors, mutate.SAFETENSORS, "model/model.safetensors", _tensors),
  "npz": Kind(samples.npz, mutate.NPZ, "h{}.npz", _npz),
}


def make(kind: str, seed: int) -> bytes:
  """The damaged file of a seed."""
  generator = random.Random(seed)
  given = KINDS[kind]
  sample = generator.choice(given.samples())
  if kind == "npz" and generator.random() < 0.01:
    return mutate.NPZ_BOMB(generator, sample)
  return mutate.mutate(generator, sample, given.mutators)


def place_file(kind: str, number: int, content: bytes, place: Folder) -> Path:
  """Writes a damaged file where files of its kind are looked for."""
  path = place.root / KINDS[kind].name.format(number)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  if kind == "safetensors":
    (path.parent / "config.json").write_text("{}")
  return path
