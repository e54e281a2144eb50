"""Published architectures with random weights, in diffusers' layout, and what running them takes.

  python -m tests.full_size --architecture=sd15 --folder=/tmp/full_size

makes the folder once, loads it, protects one picture of the model's size for two rounds of AdvDM by
`experiments.protect`, and prints what each took. XL in bfloat16 needs 20 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Networks store what they are computed in; AdvDM trains none of them.
PERFORMANCE: dict[str, Any] = {
  "dtype": "bfloat16",
  "frozen_dtype": "bfloat16",
  "frozen_parts": ["unet", "vae", "text_encoder"],
}
# Numbers that all tensors repeat, so that gigabytes take seconds.
_DRAWN = 2**22
_LOAD = """
import json, sys, time
import jax, numpy as np
from udp_jax.benchmark import serve
from udp_jax.models import pipeline, tensor_files
jax.block_until_ready(jax.device_put(np.ones(8)))
serve.forget_peak()
before, started = serve.peak_rss_mib(), time.perf_counter()
loaded = pipeline.load_pipeline(sys.argv[1], json.loads(sys.argv[2]))
seconds, peak = time.perf_counter() - started, serve.peak_rss_mib()
sizes = [leaf.nbytes / 2**20 for leaf in jax.tree.leaves(loaded.params)]
print(json.dumps({"weights_mib": sum(sizes), "largest_mib": max(sizes), "load_s": seconds,
                  "load_peak_mib": peak - before}))
"""


class Loaded(NamedTuple):
  """What loading a model took.

  Attributes:
    weights_mib: memory of the parameters.
    largest_mib: memory of the largest tensor.
    load_s: seconds for loading.
    load_peak_mib: largest memory while loading, less that of the process before.
  """

  weights_mib: float
  largest_mib: float
  load_s: float
  load_peak_mib: float


class Protected(NamedTuple):
  """What protecting one picture took.

  Attributes:
    step_s: seconds of the second round, which compiles nothing.
    peak_mib: largest memory of the whole run of `experiments.protect`.
    changed_255: largest change of the picture, in levels.
  """

  step_s: float
  peak_mib: float
  changed_255: int


def write_model(
  folder: Path, configs: Mapping[str, Any], scheduler: Mapping[str, Any], small: Any = None
) -> None:
  """Writes a model with random weights in bfloat16, and a small vocabulary.

  Args:
    folder: where it goes; a folder that is finished is left as it is.
    configs: the parts' configs, as in `models.published`.
    scheduler: fields of the noise schedule.
    small: tokenizer whose vocabulary is taken, not larger than the model's; None: `tiny_ldm`'s.
  """
  import jax

  from udp_jax.models import latent, pipeline, weights
  from udp_jax.models.tokenizer import Tokenizer
  from udp_jax.runtime import files

  if (folder / "model_index.json").exists():
    return
  model = pipeline.build_model(configs, scheduler)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  for part, config in configs.items():
    fields = config.to_dict()
    clip = "architectures" in fields
    kind = pipeline.CLASSES[part]
    named = {"architectures": [kind]} if clip else {"_class_name": kind}
    files.write_json(folder / part / "config.json", fields | named)
    name = "model" if clip else "diffusion_pytorch_model"
    _write_tensors(folder / part / f"{name}.safetensors", weights._flatten(shapes[part]))
  small = small or pipeline.load_pipeline("tiny_ldm").tokenizer
  assert small is not None
  tokenizer = Tokenizer(small.vocab, small.merges, special=small.special, length=77)
  second = tokenizer if latent.TEXT_2 in configs else None
  made = pipeline.Pipeline(model, {}, tokenizer, dict(configs), dict(scheduler), second)
  for found, place in ((tokenizer, "tokenizer"), (second, "tokenizer_2")):
    if found is not None:
      found.save(folder / place)
  files.write_json(folder / "scheduler" / "scheduler_config.json", dict(scheduler))
  files.write_json(folder / "model_index.json", pipeline._index(made, "DDIMScheduler"))


def _write_tensors(path: Path, leaves: Any) -> None:
  """Writes random tensors of these (path, shape) in PyTorch's names, a piece at a time."""
  from udp_jax.models import weights

  drawn = np.random.default_rng(0).standard_normal(_DRAWN, np.float32)
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset, factors = 0, []
  for names, leaf in leaves:
    shape = tuple(leaf.shape)
    if names[-1] == "kernel":
      shape = (shape[-1], shape[-2], *shape[:-2])
    size = int(np.prod(shape))
    factors.append((size, _factor(names[-1], leaf.shape)))
    where = [offset, offset + 2 * size]
    header[weights.torch_name(names)] = {"dtype": "BF16", "shape": shape, "data_offsets": where}
    offset += 2 * size
  text = json.dumps(header).encode()
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for size, (scale, constant) in factors:
      window = (drawn[: min(size, _DRAWN)] * scale + constant).astype(ml_dtypes.bfloat16)
      for start in range(0, size, _DRAWN):
        file.write(window[: size - start].tobytes())


def _factor(kind: str, shape: tuple[int, ...]) -> tuple[float, float]:
  """Standard deviation and mean of a parameter, as in a trained network."""
  if kind == "kernel":
    return float(np.prod(shape[:-1])) ** -0.5, 0.0
  return (0.0, 1.0) if kind == "scale" else (0.02, 0.0)


def load(folder: Path) -> Loaded:
  """Loads a model in a process of its own. Raises RuntimeError if it fails."""
  command = [sys.executable, "-c", _LOAD, str(folder), json.dumps(PERFORMANCE)]
  return Loaded(**json.loads(_run(command)[0].splitlines()[-1]))


def protect(folder: Path, side: int, config: str, *words: str) -> Protected:
  """Protects a picture of that side in a process of its own.

  Args:
    folder: the model's.
    side: of the picture, in pixels.
    config: of `experiments.protect`.
    *words: more for its command line.

  Raises:
    RuntimeError: the process failed; the message is what it said.
  """
  place = folder.parent / f"{folder.name}_protected"
  for old in (place, Path(f"{place}.work"), place.with_name("pictures")):
    shutil.rmtree(old, ignore_errors=True)
  pictures = place.with_name("pictures")
  pictures.mkdir()
  y, x, c = np.mgrid[:side, :side, :3]
  clean = (128 + 90 * np.sin(x / 40 + y / 60 + c) + (x * y + c) % 17).astype(np.uint8)
  Image.fromarray(clean).save(pictures / "one.png")
  command = [sys.executable, "-m", "experiments.protect", f"--config={config}"]
  command += [f"--model={folder}", f"--input={pictures}", f"--output={place}", "--method=advdm"]
  command += ["--prompt=a painting of a house", "--noprogress", "--radius_255=8"]
  command += ["--config.protections.advdm.num_rounds=2", "--config.performance.steps_per_call=1"]
  for name, value in PERFORMANCE.items():
    given = tuple(value) if isinstance(value, list) else value
    command.append(f"--config.performance.{name}={given}")
  _, peak_mib = _run([*command, *words])
  (log,) = Path(f"{place}.work", "stages").glob("protect_advdm/**/metrics.jsonl")
  seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
  protected = np.asarray(Image.open(place / "one.png"))
  changed = np.abs(protected.astype(int) - clean).max()
  return Protected(seconds[-1], peak_mib, int(changed))


def _run(command: list[str]) -> tuple[str, float]:
  """Runs a process to its end; returns its output and its largest memory in MiB."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  with subprocess.Popen(
    command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  ) as process:
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f"{' '.join(command[:4])} ended with {process.returncode}: {said[-2000:]}")
  return said, _mib(usage)


def _mib(usage: resource.struct_rusage) -> float:
  return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
  """Measures one architecture."""
  from udp_jax.models import published
  from udp_jax.models.latent import UNET, VAE

  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--architecture", default="sd15", choices=published.ARCHITECTURES)
  parser.add_argument("--folder", required=True)
  parser.add_argument("--only", default="", choices=("", "write", "load", "protect"))
  parser.add_argument("words", nargs="*", help="more for experiments.protect, after --")
  given = parser.parse_args()
  configs, scheduler = published.architecture(given.architecture)
  folder = Path(given.folder)
  write_model(folder, configs, scheduler)
  side = configs[UNET].sample_size * configs[VAE].downscale
  config = "sdxl" if given.architecture.startswith("sdxl") else "sd"
  if given.only in ("", "load"):
    print(json.dumps(load(folder)._asdict()), flush=True)
  if given.only in ("", "protect"):
    print(json.dumps(protect(folder, side, config, *given.words)._asdict()))


if __name__ == "__main__":
  main()
