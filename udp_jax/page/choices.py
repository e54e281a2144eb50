"""What can be chosen on the page, and the command lines that come of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax.data import budget
from udp_jax.errors import ConfigError, UserError
from udp_jax.models import places
from udp_jax.page.jobs import FINISHED, PROTECT, VIEW, Job

# Side in pixels of the part of a picture on which the page shows what purifiers leave.
VIEW_PIXELS = 128
# Steps of IMPRESS there; the paper makes 1000 to 3000.
IMPRESS_STEPS = 40


class Method(NamedTuple):
  """A protection as the page offers it: its name in the library, a label, plain words, a paper."""

  name: str
  label: str
  words: str
  paper: str


class Strength(NamedTuple):
  """A budget by name: the largest change in 8-bit levels, and what it looks like."""

  name: str
  levels: float
  words: str


class Purifier(NamedTuple):
  """A purifier of the page's view: method, label, what it does, its options."""

  name: str
  label: str
  words: str
  options: dict[str, Any]


METHODS = (
  Method(
    "eudp",
    "EUDP: against being learned from, at chosen noise levels",
    "Plays a game against a copy of the model: the copy learns your pictures, and the change is "
    "moved to where the copy still fails. It works on the steps at which the change can be seen.",
    "Zhao, Duan, Hu, Xu, Hu 2023, Unlearnable Examples for Diffusion Models, arXiv:2306.01902: "
    "the enhanced form, here rebuilt from the paper's abstract",
  ),
  Method(
    "udp",
    "UDP: against being learned from",
    "The same game with all steps of the model alike.",
    "Zhao, Duan, Hu, Xu, Hu 2023, Unlearnable Examples for Diffusion Models, arXiv:2306.01902",
  ),
  Method(
    "advdm",
    "AdvDM: against being imitated, faster",
    "Makes the pictures hard to explain for the model as it is now. The model learns nothing "
    "meanwhile, so that this takes less time.",
    "Liang et al. 2023, Adversarial Example Does Good, arXiv:2302.04578",
  ),
  Method(
    "mist",
    "Mist: against being imitated and edited",
    "Makes the pictures hard to explain, and pulls what the model sees of them towards a pattern.",
    "Liang and Wu 2023, Mist, arXiv:2305.12683",
  ),
  Method(
    "photoguard_encoder",
    "PhotoGuard: against being edited, fastest",
    "Misleads the part of the model that looks at a picture before it edits it.",
    "Salman et al. 2023, Raising the Cost of Malicious AI-Powered Image Editing, arXiv:2302.06588",
  ),
)
STRENGTHS = (
  Strength("gentle", budget.STRENGTHS["gentle"], "hard to see, the weakest protection"),
  Strength("medium", budget.STRENGTHS["medium"], "seen in skies and flat areas"),
  Strength("strong", budget.STRENGTHS["strong"], "a visible texture, the strongest protection"),
)
PURIFIERS = (
  Purifier("jpeg", "JPEG", "saved again at quality 75", {"quality": 75}),
  Purifier("gaussian_blur", "Blur", "blurred over one pixel", {"sigma": 1.0}),
  Purifier(
    "impress",
    "IMPRESS",
    f"cleaned for {IMPRESS_STEPS} steps with the model's autoencoder, a short run",
    {"num_steps": IMPRESS_STEPS},
  ),
)
_FRESH_LABEL = "none of mine: a small model trained on these pictures alone"


def method(name: str) -> Method:
  """Returns the method of a name. Raises ConfigError if the page does not offer it."""
  for one in METHODS:
    if one.name == name:
      return one
  raise ConfigError(f"unknown method {name!r}; choose one of {', '.join(m.name for m in METHODS)}")


def models(folder: Path | None) -> dict[str, str]:
  """Returns labels by model: those of the package, and those in `folder`.

  Args:
    folder: a model (a folder, or one file), or a folder of models; None for none.

  Raises:
    MissingDataError, ConfigError, BadDataError: `folder` is missing, or no model is in it.
  """
  found = {name: f"{name}: small, for a first try" for name in places.PACKAGED}
  found[places.FRESH] = _FRESH_LABEL
  if folder is None:
    return found
  inside = [] if folder.is_file() else sorted(places.find_folder(folder, "models").iterdir())
  own = {}
  for path in (folder, *inside):
    try:
      places.kind_of(path)
    except UserError:
      continue
    place = path.absolute() if path.is_file() else path.resolve()  # Links lose a file's ending.
    own[str(place)] = place.name
  if not own:
    places.kind_of(folder)  # Says what is there instead.
  return own | found


def settings_of(
  model: str, method_name: str, strength: str, known: Iterable[str]
) -> dict[str, Any]:
  """Returns a job's settings for what was chosen.

  Args:
    model: a key of `models`.
    method_name: name of one of `METHODS`.
    strength: name of one of `STRENGTHS`.
    known: the models that may be chosen.

  Raises:
    ConfigError: something is not on offer.
  """
  levels = {one.name: one.levels for one in STRENGTHS}
  if model not in known:
    raise ConfigError("this page does not offer that model; choose one of the list")
  if strength not in levels:
    raise ConfigError(f"unknown strength {strength!r}; choose one of {', '.join(levels)}")
  return {"model": model, "method": method(method_name).name, "radius_255": levels[strength]}


def program(command: str) -> list[str]:
  """Returns the beginning of a command line: "protect", "purify" or "verify"."""
  return [sys.executable, "-m", "udp_jax.commands.main", command]


def commands(job: Job) -> list[list[str]]:
  """Returns the command lines of a job, each of which goes on where an earlier run ended."""
  chosen = job.settings()
  return _view_commands(job, chosen) if chosen["kind"] == VIEW else [protect_command(job, chosen)]


def protect_command(job: Job, chosen: dict[str, Any]) -> list[str]:
  """Returns the command line that protects a job's pictures."""
  words = [
    f"--input={job.pictures}",
    f"--output={job.output}",
    f"--workdir={job.work}",
    f"--method={chosen['method']}",
    f"--model={chosen['model']}",
    f"--radius_255={chosen['radius_255']:g}",
    f"--step_size_255={budget.step(chosen['radius_255']):g}",
  ]
  words += [f"--mask={job.masks}"] if chosen.get("masked") else []
  words += [f"--config={chosen['config']}"] if chosen.get("config") else []
  return [*program("protect"), *words]


def verify_command(job: Job) -> list[str]:
  """Returns the command line that checks a finished job's budget."""
  return [*program("verify"), f"--clean={job.clean}", f"--protected={job.output}"]


def _view_commands(job: Job, chosen: dict[str, Any]) -> list[list[str]]:
  made = []
  for one in PURIFIERS:
    words = [f"--input={job.pictures}", f"--output={job.folder / one.name}"]
    words += [f"--workdir={job.folder / f'{one.name}.work'}", f"--method={one.name}"]
    words += [f"--option={name}={value}" for name, value in one.options.items()]
    words += [f"--model={chosen['model']}"] if one.name == "impress" else []
    made.append([*program("purify"), *words])
  return made


def view_model(model: str) -> str:
  """Returns the model whose autoencoder IMPRESS uses: the protection's, if it has one."""
  latent = model != places.FRESH and places.kind_of(model) == places.LATENT
  return model if latent else places.PACKAGED[0]


def seconds_per_megapixel(jobs: Iterable[Job], chosen: dict[str, Any]) -> float | None:
  """Returns the median over finished jobs with the same model and method; None without any."""
  found = []
  for job in jobs:
    state, settings = job.state(), job.settings()
    same = all(settings.get(n) == chosen.get(n) for n in ("model", "method", "config"))
    if same and settings.get("kind") == PROTECT and state.status == FINISHED:
      if settings.get("megapixels") and state.seconds:
        found.append(state.seconds / settings["megapixels"])
  return statistics.median(found) if found else None
