"""Flags that several commands share: work folder, budget, parts of a model, processes."""

from __future__ import annotations

from typing import Any, NamedTuple

from absl import flags

from udp_jax.errors import ConfigError


def workdir_flag() -> flags.FlagHolder:
  """Defines --workdir."""
  return flags.DEFINE_string(
    "workdir", None, "Folder of this run, for checkpoints and results; a second call continues it."
  )


class Budget(NamedTuple):
  """The budget flags of all entry points that protect; None for a flag that is not given."""

  radius_255: flags.FlagHolder | flags.Flag
  step_size_255: flags.FlagHolder | flags.Flag
  spare_flat: flags.FlagHolder | flags.Flag

  @classmethod
  def given(cls) -> Budget:
    """Returns the flags after `budget_flags` has defined them."""
    return cls(*(flags.FLAGS[name] for name in cls._fields))

  def changes(
    self, config: Any, *, row: str | None = None, named: str | None = None
  ) -> dict[str, Any]:
    """Returns the config values that the flags set, by dotted name, for `studies.settings.frozen`.

    Args:
      config: settings of a study or a matrix.
      row: name of the only protected row; the flags also replace its own radius and step. Without
        it, rows that set their own radius or step keep them.
      named: value of --strength, which sets the radius and by default the step.

    Raises:
      ConfigError: a value cannot be used.
    """
    from udp_jax.data import budget

    radius_255, step_size_255, spare_flat = (flag.value for flag in self)
    if named is not None:
      if radius_255 is not None:
        raise ConfigError("give --strength or --radius_255, not both")
      radius_255 = budget.levels("--strength", named)
      step_size_255 = budget.step(radius_255) if step_size_255 is None else step_size_255
    if radius_255 is not None:
      budget.check_radius_255("--radius_255", radius_255)
    if step_size_255 is not None and not 0 < step_size_255 <= 255:
      raise ConfigError(
        f"--step_size_255 is {step_size_255}: it must be above 0 and at most 255, in 8-bit levels"
      )
    if spare_flat is not None and not 0 <= spare_flat <= 1:
      raise ConfigError(f"--spare_flat is {spare_flat}: it must be from 0 (off) to 1")
    found: dict[str, Any] = {}
    for name, value in (("radius_255", radius_255), ("step_size_255", step_size_255)):
      if value is None:
        continue
      found[name] = float(value)
      own, seen = row, set()
      while own and own not in seen:  # A row that imitates another row has that row's budget.
        seen.add(own)
        settings = config.protections.get(own, {})
        if name in settings:
          found[f"protections.{own}.{name}"] = float(value)
        own = settings.get("of")
    if spare_flat is not None:
      found["spare_flat"] = float(spare_flat)
    return found


def budget_flags() -> Budget:
  """Defines --radius_255, --step_size_255 and --spare_flat, which `Budget.changes` reads."""
  return Budget(
    flags.DEFINE_float(
      "radius_255",
      None,
      "Budget: the largest change of any value of a saved file, in 8-bit levels, 1 to 255; "
      "default: the config's. Rows of a config that name their own radius keep it, unless one row "
      "is all that is protected.",
    ),
    flags.DEFINE_float(
      "step_size_255",
      None,
      "Length of a step in 8-bit levels; default and rows as for --radius_255.",
    ),
    flags.DEFINE_float(
      "spare_flat",
      None,
      "Spends less of the budget where a change is visible: STRENGTH from 0 (off) to 1. Perfectly "
      "flat areas get 1 - STRENGTH of the radius, lively ones all of it. The protection is weaker "
      "there.",
    ),
  )


class ModelFlags(NamedTuple):
  """The flags that take something in place of a model's own; None for a flag that is not given."""

  vae: flags.FlagHolder | flags.Flag
  tokenizer: flags.FlagHolder | flags.Flag
  prediction_type: flags.FlagHolder | flags.Flag

  @classmethod
  def given(cls) -> ModelFlags:
    """Returns the flags after `model_flags` has defined them."""
    return cls(*(flags.FLAGS[name] for name in cls._fields))

  def changes(self) -> dict[str, str]:
    """Returns the config values that the flags set, by dotted name, for `settings.frozen`."""
    values = {f"model.{name}": flag.value for name, flag in zip(self._fields, self)}
    return {name: value for name, value in values.items() if value is not None}


def model_flags() -> ModelFlags:
  """Defines --vae, --tokenizer and --prediction_type, fields of `models.pipeline.Choices`."""
  return ModelFlags(
    flags.DEFINE_string(
      "vae", None, "VAE in place of the model's own: a .safetensors file, a folder, or OWNER/NAME."
    ),
    flags.DEFINE_string(
      "tokenizer", None, "Folder of CLIP's vocabulary, for a --model of one .safetensors file."
    ),
    flags.DEFINE_enum(
      "prediction_type",
      None,
      ["epsilon", "v_prediction"],
      "What the model predicts, where its files do not say (one file of Stable Diffusion 2.x).",
    ),
  )


def process_flags() -> None:
  """Defines the flags of a run of several processes, which `startup.join_processes` reads."""
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where the run has several processes."
  )
  flags.DEFINE_integer(
    "num_processes", None, "Number of processes; found on SLURM and Cloud TPU pods."
  )
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
  flags.DEFINE_float(
    "peer_timeout_s", 60.0, "Seconds of silence after which another process counts as lost."
  )


def deterministic_flag() -> None:
  """Defines --deterministic; `startup.repeat_exactly` does what it asks for."""
  flags.DEFINE_bool(
    "deterministic",
    False,
    "On NVIDIA GPUs: repeats a run bit for bit on the same kind of card, with the same driver and "
    "library versions. Leaves out kernels that add in a random order, and keeps XLA's choices of "
    "kernels, which it makes by timing them, in WORKDIR/autotune (without --workdir beside the "
    "compilation cache); copy that folder to repeat the run elsewhere. Every work folder compiles "
    "anew. XLA_FLAGS=--xla_gpu_deterministic_ops=true instead is slower: nothing is timed. CPUs "
    "and TPUs need neither. Not yet verified on a GPU.",
  )
