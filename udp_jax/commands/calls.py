"""What `import udp_jax` does with files, pictures of Pillow and arrays.

Files and folders go through the same studies as `udp-jax` sends them through. Pictures in memory
that are not of the model's size do too, in a temporary folder; those that are of its size are one
batch of `protections.run`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from udp_jax import protections, purifiers, registry
from udp_jax.data import batches, budget, images, marks, places
from udp_jax.data import verify as verify_lib
from udp_jax.data.verify import VerifyReport
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.models import places as models
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints
from udp_jax.stages.protect import build_protection
from udp_jax.studies import pictures as pictures_lib
from udp_jax.studies import purifying, rows, settings
from udp_jax.studies.configs.eudp import folder as folder_config
from udp_jax.studies.configs.purification import purification

_NEEDED = "paths, pictures of Pillow, or arrays of uint8 (N, H, W, 3) are needed"
# What PNG files hold without a change.
_CHANNELS = ((1,), (3,))
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ROUNDS = 20
_BATCH_SIZE = 16


class Given(NamedTuple):
  """Pictures as a caller gave them.

  Attributes:
    items: a folder, files, pictures of Pillow, or arrays (H, W, 3).
    back: turns the results, one an item, into what the caller gets.
  """

  items: list[Any]
  back: Callable[[list[Any]], Any]

  @property
  def folder(self) -> Path | None:
    """The folder, if one was given: a single path that is no file, and may be missing."""
    first, single = self.items[0], len(self.items) == 1
    return first if single and isinstance(first, Path) and not first.is_file() else None

  @property
  def on_disk(self) -> bool:
    """Whether a folder or files were given."""
    return isinstance(self.items[0], Path)

  @property
  def one_size(self) -> np.ndarray | None:
    """The pictures as an array (N, H, W, 3), if they are arrays of one size."""
    if not isinstance(self.items[0], np.ndarray) or len({item.shape for item in self.items}) > 1:
      return None
    return np.stack(self.items)


def take(pictures: Any) -> Given:
  """Finds out what a caller gave.

  Raises:
    ConfigError: they are no pictures, or a folder among several paths.
  """
  items: list[Any]
  back: Callable[[list[Any]], Any] = list
  if isinstance(pictures, str | os.PathLike | Image.Image):
    items, back = [pictures], _only
  elif isinstance(pictures, np.ndarray):
    single = pictures.ndim == 3
    items, back = list(pictures[None] if single else pictures), _only if single else _stacked
    if pictures.ndim not in (3, 4):
      raise ConfigError(f"pictures are {_named(pictures)}: {_NEEDED}")
  elif isinstance(pictures, Sequence):
    items = list(pictures)
  else:
    raise ConfigError(f"pictures are {_named(pictures)}: {_NEEDED}")
  if not items:
    raise ConfigError("there are no pictures")
  for kind in (str | os.PathLike, Image.Image, np.ndarray):
    if all(isinstance(item, kind) for item in items):
      break
  else:
    raise ConfigError(f"pictures are {_named(pictures)} of {_named(items[0])}: {_NEEDED}")
  if isinstance(items[0], str | os.PathLike):
    items = [Path(item).expanduser() for item in items]
    if len(items) > 1 and any(item.is_dir() for item in items):
      raise ConfigError("give one folder, or files, not several folders")
  for item in items:
    if isinstance(item, np.ndarray) and (item.dtype != np.uint8 or item.shape[2:] not in _CHANNELS):
      raise ConfigError(f"pictures are {_named(pictures)}: {_NEEDED}")
    if isinstance(item, Image.Image) and item.mode not in _MODES:
      raise ConfigError(f"a picture has mode {item.mode}: convert it to RGB")
  return Given(items, back)


def _only(made: list[Any]) -> Any:
  (one,) = made
  return one


def _stacked(made: list[Any]) -> np.ndarray:
  return np.stack(made)


def _named(value: Any) -> str:
  kind = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
  return kind.strip()


def open_model(path: str | os.PathLike, *, image_size: int = 0, dtype: str = "float32") -> Model:
  """See `udp_jax.load_model`."""
  config = ConfigDict({"path": os.fspath(path), "image_size": image_size})
  return factory.open_model(config, {"dtype": dtype})


def protect(
  given: Given,
  model: Model | str | os.PathLike,
  method: str,
  *,
  strength: str | float | None,
  output: str | os.PathLike | None,
  options: dict[str, Any],
) -> Any:
  """See `udp_jax.protect`; `options` has its other keywords too."""
  if strength is not None:
    if "radius_255" in options:
      raise ConfigError("give strength or radius_255, not both")
    radius_255 = budget.levels("strength", strength)
    options["radius_255"] = radius_255
    if "step_size" not in options:
      options.setdefault("step_size_255", budget.step(radius_255))
  if given.on_disk:
    return _protect_files(given, model, method, output, options)
  if output is not None:
    raise ConfigError("output is for pictures that are given as paths")
  prompts = options.pop("prompts", None)
  if prompts is not None and len(prompts) != len(given.items):
    raise ConfigError(f"{len(prompts)} prompts for {len(given.items)} pictures")
  size = options.get("batch_size", _BATCH_SIZE)
  if not isinstance(size, int) or size < 1:
    raise ConfigError(f"batch_size is {size!r}: it must be a whole number from 1")
  options = {"num_rounds": _ROUNDS} | options
  fresh = isinstance(model, str) and model == models.FRESH
  if not isinstance(model, Model) and not fresh:
    model = open_model(model)
  alike = given.one_size
  if isinstance(model, Model) and alike is not None and alike.shape[1:] == model.model.image_shape:
    return given.back([*_protect_arrays(alike, model, method, prompts, options)])
  with _as_files(given.items, prompts) as place:
    config = _study(method, "", options)
    config = settings.frozen(config, {"checkpoint.every_rounds": config.num_rounds})
    asked = pictures_lib.Asked(method, place / "in", place / "out", place / "work")
    pictures_lib.protect_folder(config, asked, model if isinstance(model, Model) else None)
    made = [_read(place / "out" / f"{n:06d}.png", item) for n, item in enumerate(given.items)]
  return given.back(made)


def _protect_files(
  given: Given,
  model: Model | str | os.PathLike,
  method: str,
  output: str | os.PathLike | None,
  options: dict[str, Any],
) -> Any:
  if output is None:
    raise ConfigError("output is needed: the folder for the protected files")
  if isinstance(model, Model):
    raise ConfigError("give the model's name or folder, which manifests name, not an opened model")
  prompt = options.pop("prompts", None)
  if prompt is not None and not isinstance(prompt, str):
    raise ConfigError("files have one prompt, for pictures without a caption beside them")
  path = "" if model == models.FRESH else os.fspath(model)
  with (
    _folder_of(given) as folder,
    places.use(
      pictures={"pictures": str(folder)},
      named={"model": path},
      outputs={"output": output},
      work={"the work folder": places.work_beside(output)},
      protects=True,
    ) as used,
  ):
    config = settings.frozen(
      _study(method, path, options),
      {"data.source": str(folder), "data.strict": given.folder is None},
    )
    config = settings.frozen(config, settings.pinned(config))
    asked = pictures_lib.Asked(
      method, folder, used["output"], used["the work folder"], prompt=prompt
    )
    made, _ = pictures_lib.protect_folder(config, asked)
    return _written(given, used["output"], made)


def _study(method: str, path: str, options: dict[str, Any]) -> Any:
  """Returns the config of `udp-jax protect`, with a caller's options."""
  config = folder_config.get_config()
  changes = {"rows": (method,), "model.path": path, "data.holdout": 0.0}
  fields = {"seed": "seed", "batch_size": "global_batch_size", "radius_255": "radius_255"}
  if "step_size" not in options:
    fields["step_size_255"] = "step_size_255"
  for name, value in options.items():
    changes[fields.get(name, f"protections.{method}.{name}")] = value
  config = settings.frozen(config, changes)
  settings.check_values(config)
  return config


def _protect_arrays(
  clean: np.ndarray, model: Model, method: str, prompts: Sequence[str] | None, options: dict
) -> np.ndarray:
  """Protects pictures (N, H, W, 3) of the model's size as one data set, without files."""
  options = {"radius_255": 16.0, "seed": 0} | options
  seed, size = options.pop("seed"), options.pop("batch_size", _BATCH_SIZE)
  asked = ConfigDict({"radius_255": options.pop("radius_255"), "step_size_255": 2.0})
  if "step_size_255" in options and "step_size" not in options:
    asked.step_size_255 = float(options.pop("step_size_255"))
  asked.num_rounds = rounds = options["num_rounds"]
  asked.protections, asked.model, asked.performance = ConfigDict(), ConfigDict(), ConfigDict()
  asked.protections[method] = ConfigDict(options)
  row = rows.settings(asked, method, model)
  built = build_protection(row, model.model, trained=model.params is not None)
  grey = images.is_grey(clean)
  data = batches.make_batches(
    clean,
    min(size, len(clean)),
    cond=model.embeddings([""] * len(clean) if prompts is None else [*prompts]),
    grey=grey.astype(np.uint8) if grey.any() else None,
  )
  rounds = 1 if built.drawn_once else rounds
  made, _ = protections.run(built, jax.random.key(seed), data, model.params, num_rounds=rounds)
  delta = batches.unbatch(np.asarray(made), len(clean)) - clean / np.float32(255)
  mean = delta.mean(axis=-1, keepdims=True)
  return constraints.saved(clean, np.where(grey[:, None, None, None], mean, delta), row.radius_255)


def purify(
  given: Given,
  method: str,
  model: Model | str | os.PathLike | None,
  *,
  output: str | os.PathLike | None,
  prompt: str,
  options: dict[str, Any],
) -> Any:
  """See `udp_jax.purify`; `options` has the seed too."""
  if given.on_disk:
    return _purify_files(given, method, model, output, prompt, options)
  if output is not None:
    raise ConfigError("output is for pictures that are given as paths")
  if model is not None and not isinstance(model, Model):
    model = open_model(model)
  key = jax.random.key(options.pop("seed", 0))
  functions, params = (None, None) if model is None else (model.model, model.params)
  accepted = registry.fields(registry.constructor("udp_jax.purifiers", method))
  cond = None if model is None or "cond" not in accepted else model.embeddings([prompt])
  if cond is not None:
    options.setdefault("cond", cond)
  elif prompt:
    raise ConfigError("a prompt is for methods that denoise with a model with text")
  purifier = purifiers.build(method, functions, options)
  theta = purifier.init(key, params)
  pixels = [item if isinstance(item, np.ndarray) else _pixels(item) for item in given.items]
  made: list[Any] = [None] * len(pixels)
  for shape in sorted({one.shape for one in pixels}):
    ids = np.array([n for n, one in enumerate(pixels) if one.shape == shape])
    alike = np.stack([pixels[n] for n in ids])
    purified = purifiers.purify(purifier, theta, stream(key, "purifier"), alike, ids)
    for n, one in zip(ids, purified):
      made[n] = _like(one, given.items[n])
  return given.back(made)


def _purify_files(
  given: Given,
  method: str,
  model: Model | str | os.PathLike | None,
  output: str | os.PathLike | None,
  prompt: str,
  options: dict[str, Any],
) -> Any:
  if output is None:
    raise ConfigError("output is needed: the folder for the purified files")
  if isinstance(model, Model):
    raise ConfigError("give the model's name or folder, which manifests name, not an opened model")
  path = "" if model is None else os.fspath(model)
  seed = options.pop("seed", 0)
  config = settings.frozen(purification(method), {"model.path": path, "seed": seed})
  with (
    _folder_of(given) as folder,
    places.use(
      pictures={"pictures": str(folder)},
      named={"model": path},
      outputs={"output": output},
      work={"the work folder": places.work_beside(output)},
    ) as used,
  ):
    asked = purifying.Asked(
      folder,
      used["output"],
      used["the work folder"],
      options=options,
      prompt=prompt,
      strict=given.folder is None,
    )
    made, _ = purifying.purify_folder(config, asked)
    return _written(given, used["output"], made)


def verify(clean: Given, protected: Given, radius_255: str | float | None) -> VerifyReport:
  """See `udp_jax.verify`."""
  if radius_255 is None and protected.folder is not None:
    radius_255 = (marks.read_manifest(protected.folder) or {}).get("radius_255")
  if radius_255 is None:
    raise ConfigError("radius_255 is needed: no manifest says what the budget is")
  if isinstance(radius_255, str):
    radius_255 = budget.levels("radius_255", radius_255)
  if clean.folder is not None and protected.folder is not None:
    return verify_lib.verify(clean.folder, protected.folder, radius_255)
  if clean.folder is not None or protected.folder is not None:
    raise ConfigError("a folder is compared with a folder")
  if len(clean.items) != len(protected.items):
    raise ConfigError(f"{len(clean.items)} clean and {len(protected.items)} protected pictures")
  with _as_files(clean.items) as ours, _as_files(protected.items) as theirs:
    return verify_lib.verify(ours / "in", theirs / "in", radius_255)


@contextmanager
def _as_files(items: Sequence[Any], prompts: Sequence[str] | None = None) -> Iterator[Path]:
  """A temporary folder with the pictures in "in", by their numbers, and captions beside them."""
  with tempfile.TemporaryDirectory(prefix="udp_jax_") as place:
    folder = Path(place) / "in"
    folder.mkdir()
    for number, item in enumerate(items):
      path = folder / f"{number:06d}.png"
      if isinstance(item, Path):
        shutil.copyfile(item, path.with_suffix(item.suffix))
      elif isinstance(item, np.ndarray):
        images.write_png(path, item)
      else:
        item.save(path)
      if prompts is not None:
        path.with_suffix(".txt").write_text(prompts[number], "utf-8")
    yield Path(place)


@contextmanager
def _folder_of(given: Given) -> Iterator[Path]:
  """The folder that was given, or a temporary one with copies of the files that were."""
  if given.folder is not None:
    yield given.folder
    return
  for path in given.items:
    if not path.is_file():
      raise ConfigError(f"{path} is neither a picture nor a folder")
  if len({path.name for path in given.items}) < len(given.items):
    raise ConfigError("two files have the same name: they would have one output")
  with tempfile.TemporaryDirectory(prefix="udp_jax_") as place:
    for path in given.items:
      shutil.copyfile(path, Path(place) / path.name)
    yield Path(place)


def _written(given: Given, output: Path, made: dict[str, Any]) -> Any:
  """Returns the output folder for a folder, and for files the file that each became."""
  if given.folder is not None:
    return output
  files = {entry["source"]["file"]: output / entry["file"] for entry in made["images"]}
  return given.back([files[path.name] for path in given.items])


def _read(path: Path, like: Any) -> Any:
  """Returns a saved picture in the form that it was given in."""
  if isinstance(like, np.ndarray):
    return images.read_image(path).pixels[..., : like.shape[-1]]  # Grey pictures stay grey.
  with Image.open(path) as picture:
    picture.load()
    return picture.copy()


def _pixels(picture: Image.Image) -> np.ndarray:
  return np.asarray(picture.convert("RGB"))


def _like(pixels: np.ndarray, like: Any) -> Any:
  """Returns purified pixels (H, W, 3) as an array, or as a picture with the old transparency."""
  if isinstance(like, np.ndarray):
    return pixels
  made = Image.fromarray(images.as_grey(pixels) if like.mode in ("1", "L", "LA") else pixels)
  made = made.convert("L") if like.mode in ("1", "L", "LA") else made
  if like.has_transparency_data:
    made.putalpha(like.convert("RGBA").getchannel("A"))
  return made
