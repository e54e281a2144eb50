"""Names in tables."""

from __future__ import annotations

from udp_jax import registry
from udp_jax.report import names


def test_every_name_is_that_of_a_method() -> None:
  packages = ("protections", "purifiers", "threats")
  known = {name for kind in packages for name in registry.available(f"udp_jax.{kind}")}
  assert set(names.METHODS) <= known
  # Where nobody says how, a name is read as it is spelled.
  assert names.method_label("eudp") == "EUDP"
  assert names.method_label("total_variation") == "total variation"


def test_labels_of_different_methods_differ() -> None:
  for kind in ("protections", "purifiers", "threats"):
    labels = [names.method_label(name) for name in registry.available(f"udp_jax.{kind}")]
    assert len(set(labels)) == len(labels) and not any("_" in label for label in labels)
