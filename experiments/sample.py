"""Samples pictures from a diffusion model in a folder, and writes them to a folder.

  python -m experiments.sample --model=runs/train/model --output=runs/samples --num_samples=64
  python -m experiments.sample --model=STABLE_DIFFUSION_FOLDER --output=runs/cats --num_samples=4 \
    --prompt="a photograph of a cat" --negative_prompt=blurry --sampler=dpm_solver_pp_2m

Several prompts are used in turn: sample i gets prompt i modulo their number. --init_image starts
from a picture (img2img); with --mask only the white part of the mask is repainted (inpainting).
--lora adds low-rank updates and --embedding a learned word for prompts, from files as
`experiments.train` and PyTorch diffusers write them; both may be given several times.
--model=tiny_ldm is the model in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.runtime import processes

_MODEL = flags.DEFINE_string(
  "model",
  None,
  "Model: a diffusers folder, a .safetensors file, OWNER/NAME on the Hugging Face Hub, or "
  "tiny_ldm.",
)
_PARTS = _cli.model_flags()
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the samples.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "Number of samples.", lower_bound=1)
_PROMPTS = flags.DEFINE_multi_string("prompt", [], "What to draw; may be given several times.")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "Text file with one prompt per line.")
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the samples should not show.")
_GUIDANCE = flags.DEFINE_float(
  "guidance_scale", 7.5, "Scale of classifier-free guidance; 1 is none.", lower_bound=0
)
_SAMPLER = flags.DEFINE_enum(
  "sampler", "ddim", ["ddim", "ddpm", "dpm_solver_pp_2m"], "Sampling method."
)
_STEPS = flags.DEFINE_integer("sample_steps", 50, "Steps of the sampler.", lower_bound=1)
_ETA = flags.DEFINE_float(
  "eta", 0.0, "Noise of DDIM: 0 is deterministic, 1 as noisy as DDPM.", lower_bound=0
)
_LORAS = flags.DEFINE_multi_string(
  "lora", [], "LoRA file (or a folder with one) to add to the model; may be given several times."
)
_LORA_SCALE = flags.DEFINE_float("lora_scale", 1.0, "How much of every --lora is added.")
_EMBEDDINGS = flags.DEFINE_multi_string(
  "embedding", [], "File of a learned token, for prompts with it; may be given several times."
)
_INIT_IMAGE = flags.DEFINE_string("init_image", None, "Picture to start from (centre square).")
_STRENGTH = flags.DEFINE_float(
  "strength", None, "With --init_image: how far from it, in (0, 1]; default 0.5, with a mask 1."
)
_MASK = flags.DEFINE_string("mask", None, "Picture, white where --init_image is painted anew.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the computation.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")
_BATCH = flags.DEFINE_integer(
  "per_device_batch_size", None, "Samples per device at a time; default 64, 4 for latent models.", 1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output folder of ours.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv: Sequence[str]) -> int:
  """Samples what the flags ask for; returns the exit code."""
  del argv
  if not _MODEL.value or not _OUTPUT.value:
    raise ConfigError("--model and --output are needed; see --help")
  _check_flags()
  from udp_jax.data import places

  with places.use(
    named={
      "--model": _MODEL.value,
      "--vae": _PARTS.vae.value,
      "--init_image": _INIT_IMAGE.value,
      "--mask": _MASK.value,
      "--prompt_file": _PROMPT_FILE.value,
      "--lora": _LORAS.value,
      "--embedding": _EMBEDDINGS.value,
    },
    outputs={"--output": _OUTPUT.value},
  ) as used:
    return _sample(used["--output"])


def _sample(output: Path) -> int:
  assert _MODEL.value is not None
  prompts = _read_prompts()
  import jax

  from udp_jax.data import manifest
  from udp_jax.models import adapters, hub, pipeline
  from udp_jax.models import places as models
  from udp_jax.runtime import mesh
  from udp_jax.stages import sample as sample_lib
  from udp_jax.stages.records import Run

  processes.from_main(
    lambda: manifest.check_output(output, overwrite=_OVERWRITE.value), "look at the output"
  )
  place = models.pinned(_MODEL.value)
  choices = pipeline.Choices(
    hub.pinned(_PARTS.vae.value or ""),
    hub.pinned(_PARTS.tokenizer.value or "", hub.TOKENIZER),
    _PARTS.prediction_type.value or "",
  )
  record: dict[str, Any] = {"method": "samples", "model": place, "seed": _SEED.value}
  record |= {name: value for name, value in choices._asdict().items() if value}
  options: dict[str, Any] = {"sample_steps": _STEPS.value}
  cond = uncond = None
  is_latent = pipeline.is_pipeline(place)
  if is_latent:
    opened = pipeline.load_pipeline(place, {"dtype": _DTYPE.value}, choices=choices)
    model, params, options["scheduler"] = opened.model, opened.params, opened.scheduler
    in_channels = opened.configs["unet"].in_channels
    if opened.tokenizer is None:
      raise ConfigError(f"{_MODEL.value} has no text encoder: it cannot be told what to draw")
    params, sizes = adapters.add_tokens(opened.tokenizer, params, _EMBEDDINGS.value)
    params = adapters.add_loras(params, _LORAS.value, scale=_LORA_SCALE.value)
    cond = opened.tokenizer([adapters.spelled_out(p, sizes) for p in prompts or [""]])
    uncond = opened.tokenizer([adapters.spelled_out(_NEGATIVE.value, sizes)])
    options["guidance_scale"] = _GUIDANCE.value if prompts else 1.0
    record |= {"prompts": prompts or [""], "negative_prompt": _NEGATIVE.value}
    record["guidance_scale"] = options["guidance_scale"]
    if _LORAS.value:
      record |= {"loras": list(_LORAS.value), "lora_scale": _LORA_SCALE.value}
    if _EMBEDDINGS.value:
      record["embeddings"] = list(_EMBEDDINGS.value)
  else:
    model, params, options["scheduler"] = _load_pixel_model(place)
    in_channels = model.shape[-1]
    if any(choices):
      raise ConfigError(
        "--vae, --tokenizer and --prediction_type are for Stable Diffusion's models"
      )
    if prompts or _NEGATIVE.value:
      raise ConfigError(f"{_MODEL.value} is a model without text: it takes no prompt")
    for name, given in (("lora", _LORAS.value), ("embedding", _EMBEDDINGS.value)):
      if given:
        raise ConfigError(f"{_MODEL.value} is a pixel model: --{name} is for Stable Diffusion's")
  inpainting_unet = in_channels > model.shape[-1]
  if inpainting_unet and not _MASK.value:
    raise ConfigError(f"{_MODEL.value} is an inpainting model: give --init_image and --mask")
  sample, used = _make_sample(model, options, inpainting_unet)
  run = Run(
    mesh=mesh.make_mesh(),
    folder=output,
    key=jax.random.key(_SEED.value),
    label="sample",
    sample_batch_size=_BATCH.value or (4 if is_latent else 64),
    overwrite=_OVERWRITE.value,
    progress=_PROGRESS.value,
  )
  record |= used | {"sample_steps": _STEPS.value, "eta": _ETA.value}
  asked = sample_lib.Asked(cond, uncond, record)
  sample_lib.sample(sample, params, output, run, num_samples=_NUM_SAMPLES.value, asked=asked)
  print(f"{_NUM_SAMPLES.value} samples: {_OUTPUT.value}")
  return 0


def _check_flags() -> None:
  """Raises ConfigError if a flag needs another one that is missing."""
  if _ETA.value and _SAMPLER.value != "ddim":
    raise ConfigError(f"--eta is an option of ddim, not of {_SAMPLER.value}")
  for name, value in (("mask", _MASK.value), ("strength", _STRENGTH.value)):
    if value is not None and not _INIT_IMAGE.value:
      raise ConfigError(f"--{name} needs --init_image")
  if _LORA_SCALE.value != 1.0 and not _LORAS.value:
    raise ConfigError("--lora_scale needs --lora")


def _read_prompts() -> list[str]:
  """Returns all prompts: those of the flag, then the lines of the file that are not empty."""
  prompts = list(_PROMPTS.value)
  if _PROMPT_FILE.value:
    try:
      lines = Path(_PROMPT_FILE.value).read_text("utf-8").splitlines()
    except FileNotFoundError as error:
      raise MissingDataError(f"{_PROMPT_FILE.value}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
      raise BadDataError(f"{_PROMPT_FILE.value}: cannot be read as UTF-8 text") from error
    prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
      raise BadDataError(f"{_PROMPT_FILE.value} holds no prompt")
  return prompts


def _load_pixel_model(path: str) -> tuple[Any, Any, dict[str, Any]]:
  """Loads a pixel model: the model, its parameters, and the scheduler of its folder."""
  from udp_jax.models import factory, performance, places, weights

  speed = performance.module_options({"dtype": _DTYPE.value})
  model, _, params = factory.load(path, **speed)
  return model, params, weights.load_scheduler_config(places.resolve(path)) or {}


def _make_sample(
  model: Any, options: dict[str, Any], inpainting_unet: bool
) -> tuple[Callable[..., Any], dict[str, Any]]:
  """Returns the sampling function (`SampleFn`), and its description for the manifest."""
  from udp_jax.models import sampling
  from udp_jax.threats import build_edit

  options |= {"sampler": _SAMPLER.value, "eta": _ETA.value}
  if not _INIT_IMAGE.value:
    how = sampling.Sampling(**options)
    return sampling.make_sample(model, how), {"sampler": _SAMPLER.value}
  used: dict[str, Any] = {"sampler": _SAMPLER.value, "init_image": _INIT_IMAGE.value}
  image, mask = _read_start(model.image_shape[0])
  options["strength"] = _STRENGTH.value or (1.0 if _MASK.value else 0.5)
  used["strength"] = options["strength"]
  if mask is not None:
    options["inpainting_unet"] = inpainting_unet
    used["mask"] = _MASK.value
  edit = build_edit("img2img" if mask is None else "inpaint", model, options)
  return _from_picture(edit, image, mask), used


def _from_picture(edit: Any, image: Any, mask: Any) -> Callable[..., Any]:
  """Turns the editing of one picture into a sampling function: each sample is a new edit."""
  import jax
  import jax.numpy as jnp

  def sample(key: Any, params: Any, num_samples: int, cond: Any = None, uncond: Any = None) -> Any:
    keys = jax.random.split(key, num_samples)
    repeat = lambda array: jnp.broadcast_to(jnp.asarray(array), (num_samples, *array.shape))
    masks = None if mask is None else repeat(mask)
    return edit.apply(keys, params, repeat(image), cond, uncond, masks)

  return sample


def _read_start(size: int) -> tuple[Any, Any]:
  """Reads --init_image (size, size, 3) in [0, 1] and --mask (size, size, 1), 0 or 1, or None."""
  import numpy as np

  from udp_jax.data import images, masks

  picture = images.read_image(str(_INIT_IMAGE.value))
  start = images.resize_picture(picture, size).pixels / np.float32(255)
  if not _MASK.value:
    return start, None
  place, name = Path(_MASK.value), str(_INIT_IMAGE.value)
  white = masks.read_for(place, name, picture.pixels.shape[:2], done="painted anew")
  levels = np.repeat(np.uint8(255) * white[..., None], 3, axis=-1)
  mask = images.resize_picture(images.Picture(levels), size).pixels[..., :1] >= 128
  if not mask.any():
    raise BadDataError(
      f"{place}: the centre square of {name}, in the model's {size}x{size} pixels, has nothing of "
      "what this mask is white in, so nothing would be painted anew"
    )
  return start, mask.astype(np.float32)


if __name__ == "__main__":
  _cli.run(main)
