"""A model on a mesh: what is gathered, how often, and which mesh its functions see."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from udp_jax.models import sharded
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import sharding


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
  """What was gathered, in order; a gathered tree is the tree in a list."""
  seen: list[object] = []
  monkeypatch.setattr(sharding, "gather", lambda params, mesh: seen.append(params) or [params])
  return seen


def _mesh(data: int, fsdp: int) -> jax.sharding.AbstractMesh:
  return jax.sharding.AbstractMesh((data, fsdp), mesh_lib.AXES)


def _model(gaussian_model):
  """Functions that tell what they were given, and on which mesh they ran."""

  def told(params, *_, **__):
    return params, jax.sharding.get_abstract_mesh().shape_tuple

  return gaussian_model._replace(
    apply=told,
    encode=told,
    decode=told,
    reconstruct=told,
    posterior=told,
    hold=lambda params: ("held", params),
  )


def test_one_device_needs_nothing(gaussian_model) -> None:
  assert sharded.split_weights(gaussian_model, mesh_lib.make_mesh(jax.devices()[:1])) is (
    gaussian_model
  )


def test_every_function_gathers_what_is_split(gaussian_model, gathered: list[object]) -> None:
  model = sharded.split_weights(_model(gaussian_model), _mesh(2, 4))
  axes = (("data", 2), ("fsdp", 4))
  for function, more in (
    (model.apply, [None]),
    (model.encode, [None]),
    (model.decode, []),
    (model.reconstruct, []),
    (model.posterior, []),
  ):
    assert function("theta", np.zeros(1), *more) == (["theta"], axes)
  assert gathered == ["theta"] * 5
  assert jax.sharding.get_abstract_mesh().empty


def test_held_weights_are_gathered_once(gaussian_model, gathered: list[object]) -> None:
  model = sharded.split_weights(_model(gaussian_model), _mesh(1, 4))
  held = model.hold("theta")
  for _ in range(3):
    assert model.apply(held, np.zeros(1), None)[0] == ("held", ["theta"])
  assert gathered == ["theta"]


def test_whole_weights_are_not_gathered(gaussian_model, gathered: list[object]) -> None:
  model = sharded.split_weights(_model(gaussian_model), _mesh(8, 1))
  assert model.apply("theta", np.zeros(1), None) == ("theta", (("data", 8), ("fsdp", 1)))
  assert model.hold("theta") == ("held", "theta") and gathered == []
  plain = sharded.split_weights(gaussian_model, _mesh(8, 1))
  assert plain.reconstruct is None and plain.posterior is None
