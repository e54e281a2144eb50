"""The table of published settings, and the configs and docstrings that promise them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

import pytest

import experiments.configs.train as train_configs
import udp_jax.studies.configs.purify as purify_configs
from experiments import _cli
from udp_jax import published, registry

# Fields of options that no publication sets, or that are only ours: sampling of threats' own
# pictures, prompts of the user's pictures, our adaptive forms.
OURS = {
  *("method", "sample_steps", "guidance_scale", "prompt", "mask", "init_word", "transforms"),
  *("class_prompt", "num_draws", "band", "band_sigma"),
  *("strength", "num_vectors", "train_text_encoder", "sampler", "eta", "perceptual"),
  *("perceptual_weights", "stride", "sigma", "needs_clean_set"),
}
# Entries that are published nowhere: the fine-tuning of the Glaze study is ours, and so are the
# purifiers' settings that the table does not have.
OF_OURS = {("glaze", "threats", "full")}
# The matrix `full` puts all methods at one budget.
AT_ONE_BUDGET = {("full", "radius_255")}


def found_in(package: Any, ending: str = "") -> list[str]:
  names = [module.name for module in pkgutil.iter_modules(package.__path__)]
  return [name for name in names if name.endswith(ending)]


def disagreements(kind: str, method: str, options: dict[str, Any]) -> list[str]:
  """Fields that differ from the table."""
  known = published.of(kind, method)
  return [
    f"{kind}.{method}.{field} is {value}, published: {known[field]}"
    for field, value in options.items()
    if field in known and not known[field].allows(value)
  ]


def unknown(kind: str, method: str, options: dict[str, Any]) -> list[str]:
  """Fields of a method in the table that neither the table nor `OURS` has."""
  known = published.of(kind, method)
  return sorted(options.keys() - known.keys() - OURS) if known else []


@pytest.mark.parametrize(
  "name", [*found_in(train_configs, "_sd15"), *found_in(train_configs, "_sdxl")]
)
def test_fine_tuning(name: str) -> None:
  config = _cli.get_config("train", name)
  options = config.threat.options.to_dict() | {"global_batch_size": config.global_batch_size}
  method = config.threat.name
  assert disagreements("threats", method, options) == []
  assert unknown("threats", method, options) == []
  if method == "dreambooth":
    assert options["learning_rate"] == published.dreambooth_rate(
      options["rank"], options["train_text_encoder"]
    )


@pytest.mark.parametrize("name", ["full", "photoguard", "glaze"])
def test_matrices(name: str) -> None:
  config = _cli.get_config("impress", name)
  wrong = []
  for kind in ("protections", "purifiers", "threats"):
    for entry, given in config[kind].items():
      options, method = given.to_dict(), given.get("method", entry)
      if (name, kind, entry) in OF_OURS or not published.of(kind, method):
        continue
      constructor = registry.constructor(f"udp_jax.{kind}", method)
      accepted = registry.fields(constructor)
      if kind == "protections":
        options.setdefault("radius_255", config.radius_255)
        options.setdefault("num_rounds", config.num_rounds)
        if "step_size" in accepted:
          options.setdefault("step_size_255", config.step_size_255)
      elif "train_steps" in published.of(kind, method):
        options["global_batch_size"] = options.pop("batch_size", config.global_batch_size)
      # What an entry leaves out has the constructor's default, which must be published too.
      defaults = {
        field: accepted[field].default
        for field in published.of(kind, method)
        if field in accepted and accepted[field].default is not registry.REQUIRED
      }
      if method == "photoguard_diffusion" and not options.get("l2_radius"):
        del defaults["l2_radius"]  # Its other form, in an L-inf ball.
      if method == "dreambooth" and not options.get("learning_rate"):
        defaults["learning_rate"] = published.dreambooth_rate(options.get("rank", 0), False)
      if name == "full":
        options.pop("radius_255", None)
      own = {field: value for field, value in defaults.items() if field in CHECKED_DEFAULTS}
      wrong += disagreements(kind, method, own | options) + unknown(kind, method, options)
  assert wrong == []


# Fields whose constructor defaults are published ones; others (targets that need a prompt,
# surrogates that need a text encoder) are set by the configs that promise them.
CHECKED_DEFAULTS = {
  *("learning_rate", "clip_norm", "flip", "weight_decay", "decay", "warmup_steps", "rank"),
  *("direction", "rate", "num_draws", "perturb_steps", "latent_radius", "latent_step"),
  *("earliest", "latent_weight", "mean_weight", "kind", "masks", "contour_strength"),
  *("contour_smoothness", "sigma_steps", "sigma_rate", "spectrum_budget"),
}


@pytest.mark.parametrize("name", found_in(purify_configs))
def test_purifiers(name: str) -> None:
  config = _cli.get_config("purify", name)
  assert disagreements("purifiers", config.method, config.options.to_dict()) == []


@pytest.mark.parametrize(
  "name", [method for kind, method in published.SETTINGS if kind == "protections"]
)
def test_docstrings_say_the_published_budget(name: str) -> None:
  """ "published: 6.4 / 255" in a docstring is the table's value."""
  method = registry.constructor("udp_jax.protections", name)
  known = published.of("protections", name)
  for field in ("radius", "step_size"):
    text = re.search(rf"^    {field}: (.*?)(?=^    \w+: |\Z)", method.__doc__ or "", re.S | re.M)
    said = re.search(r"published: ([\d.]+) / 255", text.group(1)) if text else None
    if said:
      assert known[f"{field}_255"].allows(float(said.group(1))), (name, field)


def test_every_entry_is_a_method_and_names_its_source() -> None:
  beside = {"global_batch_size", "num_rounds", "style_prompt", "class_prompt", "num_class_images"}
  for (kind, method), fields in published.SETTINGS.items():
    accepted = registry.fields(registry.constructor(f"udp_jax.{kind}", method))
    names = {field.removesuffix("_255") for field in fields} - beside - {"num_vectors"}
    assert names <= accepted.keys(), (method, names - accepted.keys())
    assert all(setting.source and "/" in setting.source for setting in fields.values())
  package = importlib.import_module("udp_jax.published")
  assert "udp" not in {method for _, method in package.SETTINGS}


def test_a_wrong_value_is_found() -> None:
  assert disagreements("threats", "textual_inversion", {"learning_rate": 5e-4})
  assert disagreements("threats", "textual_inversion", {"flip": False})
  assert unknown("threats", "textual_inversion", {"loudness": 1}) == ["loudness"]
  assert not published.Setting(True, "", "a/b").allows(1.5)
