"""Finds out which kind of model is at a path, or explains what is there instead.

Every reader of a model calls this first, so that a wrong path always gives the same answer:

  latent   a Stable Diffusion folder (1.x, 2.x, XL) in diffusers' layout (unet/, vae/, ...), or a
           checkpoint of one safetensors file (`models.single_file`)
  pixel    a DDPM folder (unet/ or config.json of a UNet2DModel, or of an ADM: `models.adm`)

OWNER/NAME[@REVISION] is a folder of the Hugging Face Hub's cache (`models.hub`), unless a folder of
that name is here. Anything else is refused with a specific message: a missing part, a pickle, a Git
LFS pointer, a model of another family or with a class that this library does not have.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from udp_jax.data import hub_names
from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import hub, single_file
from udp_jax.runtime import files

LATENT, PIXEL = "latent", "pixel"
# Names of models in the package; each stands for a folder.
PACKAGED = ("tiny_ldm",)
# What names of score models of galaxies start with (`models.galaxies`).
GALAXIES = "galaxygrad:"
# The pixel model that `experiments.protect` trains on the pictures themselves.
FRESH = "pixel"

_LATENT_UNET, _PIXEL_UNET, _ADM = "UNet2DConditionModel", "UNet2DModel", "ADM"
# A U-Net's config has at least one of these fields.
_UNET_FIELDS = ("_class_name", "down_block_types", "block_out_channels", "cross_attention_dim")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_READ_FILE = ".safetensors"
# Patterns that identify a family by the class in model_index.json or the classes of its parts.
_FAMILIES = (
  (re.compile("StableDiffusion3|SD3"), "Stable Diffusion 3"),
  (re.compile("Flux"), "Flux"),
  (re.compile("PixArt"), "PixArt"),
  (re.compile("Kandinsky"), "Kandinsky"),
  (re.compile("Cascade"), "Stable Cascade"),
)
# Parts that Stable Diffusion 1.x, 2.x and XL lack.
_OTHER_PARTS = ("text_encoder_3", "transformer", "prior")
# Classes of the parts in model_index.json, and parts that are never read.
_CLASSES = {
  "unet": (_LATENT_UNET, _PIXEL_UNET),
  "vae": ("AutoencoderKL",),
  "text_encoder": ("CLIPTextModel",),
  "text_encoder_2": ("CLIPTextModelWithProjection",),
  "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
  "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_UNREAD = ("safety_checker", "feature_extractor", "image_encoder")
# Schedulers whose noise is no schedule of betas.
_OTHER_SCHEDULERS = re.compile("FlowMatch|EDM|SdeV|KarrasVe|IPNDM|CMStochastic|VQDiffusion|Amused")
_SUPPORTED = (
  "Stable Diffusion 1.x, 2.x and XL, and DDPMs of pixels, in diffusers' layout, are supported"
)
_CONVERT = (
  "Convert it to a diffusers folder where PyTorch diffusers is installed: "
  "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give FOLDER"
)


def resolve(path: str | os.PathLike[str]) -> Path:
  """Returns the place of a model: of a name in `PACKAGED`, a name on the Hub, or a path.

  A model of the Hub is fetched if the cache lacks it; one that is not supported is refused before
  its weights are.

  Raises:
    MissingDataError, ConfigError, BadDataError: as `hub.resolve` and `kind_of`.
  """
  if os.fspath(path) in PACKAGED:
    return Path(__file__).parent / os.fspath(path)
  return hub.resolve(path, check=kind_of)


def pinned(path: str) -> str:
  """Returns how a run records a model: a name on the Hub with its commit, any path as it is.

  Raises:
    MissingDataError, ConfigError, BadDataError: as `resolve`.
  """
  return path if path in PACKAGED else hub.pinned(path, check=kind_of)


def named(path: str) -> str:
  """Returns what to call a model in a published record: its name, but not its folder.

  >>> named("/home/me/models/sd15"), named("/home/me/v1-5.safetensors")
  ('sd15', 'v1-5.safetensors')
  """
  return path if hub_names.is_pinned(path) else Path(path).expanduser().resolve().name


def kind_of(path: str | os.PathLike[str]) -> str:
  """Returns `LATENT` or `PIXEL`, the kind of a model, from its layout, configs and tensors' names.

  Weights are not read.

  Args:
    path: a folder, a safetensors file, a name on the Hub, a name in `PACKAGED`, or one of
      `models.galaxies`.

  Raises:
    MissingDataError: the folder or a part is missing; says which one, and how to get it.
    ConfigError: the path is not a supported model; says what it is.
    BadDataError: a config or a file's header is damaged.
  """
  if os.fspath(path).startswith(GALAXIES):
    return PIXEL
  place = resolve(path)
  if place.is_file() and place.suffix.lower() == _READ_FILE:
    single_file.family_of(place)  # Raises for what is none.
    return LATENT
  folder = find_folder(place, "a model")
  _refuse_families(folder)
  _refuse_classes(folder)
  unet = _config(folder, "unet")
  own = _config(folder, "")
  _refuse_other_unet(folder, unet)
  if own is not None and unet is None:
    return _kind_of_part(folder, own)
  has_vae = (folder / "vae" / "config.json").is_file()
  if unet is not None:
    kind = _kind_of_unet(unet)
    if kind == PIXEL and not has_vae:
      return PIXEL
    if kind == LATENT and has_vae:
      _require_encoders(folder, unet)
      return LATENT
    if kind == LATENT:
      raise MissingDataError(
        f"{folder} has no vae/config.json: Stable Diffusion's pictures go through a VAE, and a "
        f"folder needs unet/, vae/, scheduler/, text_encoder/ and tokenizer/. {_again(folder)}"
      )
    beside = " with a VAE beside it" if has_vae else ""
    raise ConfigError(
      f"{folder / 'unet' / 'config.json'} describes a {unet.get('_class_name')}{beside}: "
      f"{_SUPPORTED}"
    )
  if has_vae:
    raise MissingDataError(f"{folder} has no unet/config.json, only a VAE. {_again(folder)}")
  for file in sorted(folder.iterdir()):
    if file.suffix.lower() in _SINGLE_FILES and file.is_file():
      raise _single_file(file, inside=True)
  if inside := sorted(folder.glob("*/model_index.json")) + sorted(
    folder.glob("snapshots/*/model_index.json")
  ):
    raise MissingDataError(f"{folder} is no model; did you mean {inside[0].parent}?")
  raise MissingDataError(
    f"{folder} is no model: no unet/config.json, vae/config.json or config.json is in it. "
    f"{_again(folder)}"
  )


def find_folder(path: str | os.PathLike[str], what: str) -> Path:
  """Returns the non-empty folder at a path given for `what`, such as "a model".

  Raises:
    MissingDataError: the path is missing, an empty folder, a Git LFS pointer, or a name on the Hub.
    ConfigError: the path is a file.
  """
  name = os.fspath(path)
  folder = Path(__file__).parent / name if name in PACKAGED else Path(path).expanduser()
  if folder.is_file():
    files.refuse_lfs_pointer(folder)
    if folder.suffix.lower() in _SINGLE_FILES:
      raise _single_file(folder)
    raise ConfigError(
      f"{name} is a file: {what} is a folder, as diffusers or transformers write it"
    )
  if not folder.is_dir():
    if found := hub_names.parse(name):
      raise MissingDataError(
        f"no folder {name} is here; {what} is read from a folder only. For the one of that name on "
        f"the Hugging Face Hub run `hf download {found.repo} --local-dir FOLDER` on a machine with "
        "network access and give FOLDER"
      )
    if hub_names.parse(f"{name}@main"):
      raise MissingDataError(
        f"no folder {name}, though {folder.parent} is here; for a model of that name on the Hugging"
        f" Face Hub give {name}@main"
      )
    raise MissingDataError(f"no folder {name}: {what} is a folder; {_GET}")
  if not any(folder.iterdir()):
    raise MissingDataError(f"{name} is an empty folder, not {what}; {_GET}")
  return folder


def unsupported(file: Path, error: ConfigError) -> ConfigError:
  """Returns the error for a part that asks for something this library does not have.

  Args:
    file: its config.json, or the file with the part.
    error: what it asks for.
  """
  return ConfigError(f"{file}: {error}. {_SUPPORTED}")


_GET = (
  "on a machine with network access run `hf download OWNER/MODEL --local-dir FOLDER`, and give "
  "FOLDER"
)


def _again(folder: Path) -> str:
  if repo := hub.of_snapshot(folder):
    return f"Download all of it again: {hub.command(repo, folder.name)}"
  return f"Download all of it again: `hf download OWNER/MODEL --local-dir {folder}`"


def _single_file(file: Path, *, inside: bool = False) -> ConfigError | MissingDataError:
  """Returns the error for a file in place of a folder; raises if the file is only a pointer."""
  files.refuse_lfs_pointer(file)
  suffix = file.suffix.lower()
  if suffix == _READ_FILE:
    return ConfigError(
      f"{file.parent} is no model folder; did you mean the file {file}?"
      if inside
      else f"{file} is a file: a folder is wanted, as diffusers or transformers write it"
    )
  if suffix == ".gguf":
    return ConfigError(f"{file} holds quantised weights, which are not read. {_CONVERT}")
  return ConfigError(
    f"{file} is a single-file checkpoint that is a pickle, which is never opened here because it "
    f"can run code. {_CONVERT}"
  )


def _config(folder: Path, part: str) -> dict[str, Any] | None:
  place = folder / part / "config.json"
  return files.read_json(place) if place.is_file() else None


def _refuse_other_unet(folder: Path, unet: dict[str, Any] | None) -> None:
  """Raises BadDataError if a U-Net's config is empty or contradicts model_index.json."""
  if unet is None:
    return
  place = folder / "unet" / "config.json"
  index = folder / "model_index.json"
  promised = str(files.read_json(index).get("_class_name", "")) if index.is_file() else ""
  if not any(field in unet for field in _UNET_FIELDS):
    promise = f", though {index.name} promises a {promised}" if promised else ""
    raise BadDataError(
      f"{place} is incomplete: it names neither a class nor blocks{promise}. {_again(folder)}"
    )
  if promised.startswith("StableDiffusion") and _kind_of_unet(unet) == PIXEL:
    raise BadDataError(
      f"{place} describes a {_PIXEL_UNET}, and {index.name} promises a {promised}, which has a "
      f"{_LATENT_UNET}. {_again(folder)}"
    )


def _refuse_families(folder: Path) -> None:
  """Raises ConfigError if a model belongs to an unsupported family."""
  index_file = folder / "model_index.json"
  index = files.read_json(index_file) if index_file.is_file() else {}
  own = [_config(folder, part) or {} for part in ("", "transformer", "unet")]
  xl = any(c.get("addition_embed_type") == "text_time" for c in own)
  parts = _OTHER_PARTS if xl else ("text_encoder_2", *_OTHER_PARTS)
  has = [n for n in parts if _listed(index, n) or (folder / n / "config.json").is_file()]
  classes = [str(index.get("_class_name", "")), *(str(c.get("_class_name", "")) for c in own)]
  named = next(
    (family for sign, family in _FAMILIES for name in classes if sign.search(name)), None
  )
  if named or has:
    named = named or "a model of another family"
    what = f"{named} ({', '.join(filter(None, (classes[0], *has)))})"
    raise ConfigError(f"{folder} is {what}, which is not supported yet: {_SUPPORTED}")


def _refuse_classes(folder: Path) -> None:
  """Raises ConfigError if a part that model_index.json lists has a class that is not supported."""
  index_file = folder / "model_index.json"
  index = files.read_json(index_file) if index_file.is_file() else {}
  for part, entry in index.items():
    if not isinstance(entry, list) or len(entry) != 2 or part in _UNREAD or not entry[1]:
      continue
    found, known = str(entry[1]), _CLASSES.get(part, ())
    if found in known or (part == "scheduler" and not _OTHER_SCHEDULERS.search(found)):
      continue
    raise ConfigError(
      f"{folder} is a {index.get('_class_name')}: its {part} is a {found}, which is not supported: "
      f"{_SUPPORTED}"
    )


def _require_encoders(folder: Path, unet: dict[str, Any]) -> None:
  """Raises ConfigError for XL's refiner, and MissingDataError if XL lacks a text encoder."""
  index_file = folder / "model_index.json"
  index = files.read_json(index_file) if index_file.is_file() else {}
  promised = str(index.get("_class_name", ""))
  if unet.get("addition_embed_type") != "text_time":
    if "XL" in promised:
      raise ConfigError(
        f"{folder / 'unet' / 'config.json'} is not Stable Diffusion XL's, and {index_file.name} "
        f"promises a {promised}. {_again(folder)}"
      )
    return
  lost = [
    n for n in ("text_encoder", "text_encoder_2") if not (folder / n / "config.json").is_file()
  ]
  if lost == ["text_encoder"] and not _listed(index, "text_encoder"):
    raise ConfigError(
      f"{folder} is the refiner of Stable Diffusion XL, which has one text encoder and is not "
      f"supported; give the base model: {_SUPPORTED}"
    )
  if lost:
    raise MissingDataError(
      f"{folder} has no {lost[0]}/config.json: Stable Diffusion XL has two text encoders. "
      f"{_again(folder)}"
    )


def _listed(index: dict[str, Any], part: str) -> bool:
  entry = index.get(part)
  return bool(entry[0] if isinstance(entry, list) and entry else entry)


def _kind_of_unet(config: dict[str, Any]) -> str | None:
  """Returns the kind of a U-Net's config, by its class or, without one, by its blocks."""
  name = config.get("_class_name")
  if name is None:
    blocks = str(config.get("down_block_types", ""))
    return LATENT if "CrossAttn" in blocks or "cross_attention_dim" in config else PIXEL
  return {_LATENT_UNET: LATENT, _PIXEL_UNET: PIXEL, _ADM: PIXEL}.get(name)


def _kind_of_part(folder: Path, config: dict[str, Any]) -> str:
  """Returns the kind of a folder with its own config.json; raises if it is only a part."""
  named = config.get("_class_name") or (config.get("architectures") or [None])[0]
  kind = _kind_of_unet(config)
  if kind == PIXEL and named in (None, _PIXEL_UNET, _ADM):
    return PIXEL
  parts = {
    _LATENT_UNET: "the U-Net",
    "AutoencoderKL": "the VAE",
    "CLIPTextModel": "the text encoder",
    "CLIPTextModelWithProjection": "a text encoder",
  }
  if named in parts or kind == LATENT:
    raise MissingDataError(
      f"{folder} is only {parts.get(named or '', 'the U-Net')} of Stable Diffusion: give the "
      "folder that holds unet/, vae/, scheduler/, text_encoder/ and tokenizer/"
    )
  raise ConfigError(f"{folder} holds a {named}, which is no diffusion model: {_SUPPORTED}")
