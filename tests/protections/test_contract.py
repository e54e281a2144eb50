"""What every protection must do. New modules of the package are found and tested by themselves."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.docstrings import check_constructor
from udp_jax import protections, registry
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising
from udp_jax.models.base import DiffusionModel
from udp_jax.ops.image import quantise_within
from udp_jax.protections.base import PERTURB, TRAIN, WHOLE, Protection

KEY = jax.random.key(21)
RADIUS_255 = 8
ROUNDS = 6
# Given to the protections that have them: sizes that suit a model of a few operations.
OPTIONS: dict[str, Any] = {"radius_255": RADIUS_255, "step_size_255": 2, "learning_rate": 0.05}
OPTIONS |= {"train_steps": 8, "perturb_steps": 2, "num_draws": 2}
# A network that compares pictures needs larger ones: test_glaze_is_held_back_by_what_can_be_seen.
OPTIONS |= {"perceptual": ""}
# An autoencoder of averages loses more of a picture than any budget.
OPTIONS |= {"keep_lost": True}
# Sizes of one method: few rounds that train its pool; blurs that leave something of 8x8 pixels.
OF_METHODS = {
  "blurguard": {"sigma_steps": 5},
  "metacloak": {"warmup_rounds": 2, "restart_every": 2},
}
# What the others do to the denoising loss is not their aim.
RAISE_THE_DENOISING_LOSS = ("advdm", "fsmg", "aspl")


def constructor(name: str):
  return getattr(importlib.import_module(f"udp_jax.protections.{name}"), name)


def options(name: str) -> dict[str, Any]:
  accepted = registry.fields(constructor(name))
  given = {k: v for k, v in OPTIONS.items() if k.removesuffix("_255") in accepted}
  given |= OF_METHODS.get(name, {})
  if "num_draws" in given and accepted["num_draws"].default == 1:
    del given["num_draws"]  # One draw is what the method is about.
  return given


def fit(model: DiffusionModel, pictures: np.ndarray) -> dict:
  """The Gaussian model's best parameters for pictures (N, H, W, C) uint8, in closed form."""
  x0 = np.asarray(model.encode(None, pictures / 255, None))
  spread = np.sqrt(np.mean(np.square(x0 - x0.mean(0)), axis=(0, 1, 2)))
  return {"mean": jnp.float32(x0.mean(0)), "log_spread": jnp.float32(np.log(spread))}


class Case(NamedTuple):
  """A protection with its data, and its functions compiled once."""

  name: str
  model: DiffusionModel
  protection: Protection
  data: batches.Batch
  params: Any
  init: Any
  update: Any

  def rounds(self, key, num_rounds: int, phases=(WHOLE,), state=None):
    """The state after some rounds, and the infos of every call."""
    state = self.init(key, self.data, self.params) if state is None else state
    infos = []
    for _ in range(num_rounds):
      for phase in phases:
        state, info = self.update(key, state, self.data, self.params, jnp.int32(phase))
        infos.append(info)
    return state, infos


@pytest.fixture(scope="module", params=protections.available())
def case(request, gaussian_model, latent_model, pictures):
  name, model = request.param, gaussian_model
  try:
    protection = protections.build(name, model, options(name))
  except ConfigError as error:
    assert "needs a latent diffusion model: this one works on pixels" in str(error)
    model = latent_model
    protection = protections.build(name, model, options(name))
  levels = np.random.default_rng(2).integers(-RADIUS_255, RADIUS_255 + 1, pictures.shape)
  reference = np.clip(pictures + levels, 0, 255).astype(np.uint8)
  data = batches.make_batches(
    pictures, 6, reference=reference if protection.needs_reference else None
  )
  params = fit(model, pictures) if protection.needs_params else None
  functions = jax.jit(protection.init), jax.jit(protection.update)
  return Case(name, model, protection, data, params, *functions)


@pytest.fixture(scope="module")
def outcome(case):
  """State and infos after `ROUNDS`, and the protected 8-bit pictures."""
  state, infos = case.rounds(KEY, ROUNDS)
  count = int(case.data.weight.sum())
  clean = jnp.asarray(batches.unbatch(case.data.images, count))
  delta = jnp.asarray(batches.unbatch(state.delta, count))
  return state, infos, np.asarray(quantise_within(clean, delta, RADIUS_255))


def test_modules_were_found():
  names = {"advdm", "eudp", "matched_noise", "random_noise", "shuffled_delta", "udp"}
  names |= {"photoguard_encoder", "photoguard_diffusion", "glaze", "mist", "sds", "fsmg", "aspl"}
  names |= {"ace", "ace_plus", "blurguard", "diffusion_guard", "metacloak", "pid"}
  assert names <= set(protections.available())


@pytest.mark.parametrize("name", protections.available())
def test_interface(name, gaussian_model):
  """One function of the module's name: a model, then documented keyword-only options."""
  function = constructor(name)
  check_constructor(function)
  assert inspect.signature(function).return_annotation in ("Protection", Protection)
  assert "Args:" in function.__doc__ and inspect.getmodule(function).__doc__
  assert "radius" in registry.fields(function)

  with pytest.raises(
    ConfigError, match=f"protection {name} has no option 'loudness'; it has: .*radius"
  ):
    protections.build(name, gaussian_model, options(name) | {"loudness": 1})
  without = {k: v for k, v in options(name).items() if k != "radius_255"}
  with pytest.raises(ConfigError, match=rf"protection {name} needs the option\(s\) radius"):
    protections.build(name, gaussian_model, without)
  with pytest.raises(ConfigError, match=f"protection {name}: radius_255 must be a number, got 'x'"):
    protections.build(name, gaussian_model, options(name) | {"radius_255": "x"})


def test_unknown_protection(gaussian_model):
  with pytest.raises(
    ConfigError, match="unknown protection 'base'; known: ace, ace_plus, advdm, .*udp"
  ):
    protections.build("base", gaussian_model, {})


def of_a_visit(name: str, given: dict, num_shards: int) -> tuple[dict, int]:
  """Options of a method whose round is a visit, and how many visits of a round train."""
  known, made, visits = registry.fields(constructor(name)), dict(given), num_shards
  if "train_steps" in known:
    total = given.get("train_steps", known["train_steps"].default)
    visits = next(n for n in range(num_shards, 0, -1) if total % n == 0)
    made["train_steps"] = total // visits
  for counted in {"warmup_rounds", "restart_every"} & known.keys():
    made[counted] = given.get(counted, known[counted].default) * num_shards
  return made, visits


@pytest.mark.parametrize("num_shards", [1, 4, 7])
def test_rounds_are_divided_as_options_are(case, num_shards):
  """A visit is what a method with fewer train steps, and later restarts, does in a round."""
  given = registry.scaled(options(case.name), case.name)
  of_visit, visits = of_a_visit(case.name, given, num_shards)
  expected = protections.build(case.name, case.model, of_visit)
  visit, train_visits = case.protection.divided(num_shards)
  assert train_visits == visits and visit.trains == expected.trains
  assert visit.trains * train_visits == case.protection.trains or not visit.trains
  assert case.protection.trains == given.get("train_steps", 0)
  # What is divided can be divided again.
  assert visit.divided(1)[0].trains == visit.trains
  if num_shards != 4 or of_visit == given:  # The numbers above decide what is built.
    return
  args = KEY, case.data, case.params
  state = jax.eval_shape(visit.init, *args)
  for name, given in (("init", args), ("update", (KEY, state, *args[1:]))):
    one, other = (jax.jit(getattr(p, name)).lower(*given) for p in (visit, expected))
    assert one.as_text() == other.as_text()


def test_arrays_may_be_arguments(case):
  """`protections.run` hashes a method; what an argument decides keeps its shape."""
  assert isinstance(hash(case.protection), int)
  make = case.protection.arguments
  assert (make is not None) == (case.name in ("udp", "eudp"))
  if make is None:
    return
  given = KEY, jax.eval_shape(case.protection.init, KEY, case.data, case.params), case.data
  update = case.protection.update
  plain = jax.eval_shape(update, *given, case.params)
  assert jax.eval_shape(update, *given, case.params, None, make()) == plain


def test_structure_is_kept(case):
  """The state is a pytree that goes round, as donation and checkpoints need it."""
  state = jax.eval_shape(case.protection.init, KEY, case.data, case.params)
  after, info = jax.eval_shape(case.protection.update, KEY, state, case.data, case.params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, old.weak_type)
  assert state.delta.shape == case.data.images.shape and state.delta.dtype == jnp.float32
  assert info.loss.shape == case.data.ids.shape and info.train_loss.ndim == 1
  assert case.protection.perturb_steps >= 1


def test_budget(case, outcome):
  state, infos, protected = outcome
  clean = batches.unbatch(case.data.images, len(protected))
  levels = protected.astype(int) - clean.astype(int)
  assert np.abs(levels).max() <= RADIUS_255
  assert (np.abs(levels).max((1, 2, 3)) > 0).all()
  moved = case.data.images / np.float32(255) + np.asarray(state.delta)
  assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
  assert np.abs(state.delta).max() <= RADIUS_255 / 255 + 1e-7
  assert np.isfinite(infos[-1].loss).all()


def test_the_key_decides(case, outcome):
  again, _ = case.rounds(KEY, ROUNDS)
  jax.tree.map(np.testing.assert_array_equal, again, outcome[0])
  other, _ = case.rounds(jax.random.key(22), ROUNDS)
  # Whatever is only moved from another method's pictures need not draw.
  if not case.protection.needs_reference:
    different = np.any(np.asarray(other.delta != again.delta), axis=(2, 3, 4))
    # A method that draws little may push a picture into the same corner twice.
    cornering = case.name in ("photoguard_diffusion", "ace_plus")
    assert different.mean() > 0.5 and (different.all() or cornering)


def test_rounds_in_parts(case, outcome):
  """All phases through one compiled update do bit for bit what a whole round does."""
  if not case.protection.phases:
    pytest.skip("rounds have no parts")
  state, infos = case.rounds(KEY, ROUNDS, case.protection.phases)
  jax.tree.map(np.testing.assert_array_equal, state, outcome[0])
  for whole, trained, perturbed in zip(outcome[1], infos[::2], infos[1::2], strict=True):
    assert case.protection.phases == (TRAIN, PERTURB)
    np.testing.assert_array_equal(trained.train_loss, whole.train_loss)
    np.testing.assert_array_equal(perturbed.loss, whole.loss)
    assert np.isnan(trained.loss).all() and np.isnan(perturbed.train_loss).all()


def test_a_run_goes_on_where_it_stopped(case, outcome):
  state, _ = case.rounds(KEY, 2)
  fetched = jax.tree.map(np.asarray, state)
  resumed, _ = case.rounds(KEY, ROUNDS - 2, state=jax.tree.map(jnp.asarray, fetched))
  jax.tree.map(np.testing.assert_array_equal, resumed, outcome[0])


# ---- effects ----


@pytest.fixture(scope="module")
def loss(gaussian_model):
  """Denoising loss with draws that no protection has seen."""
  return denoising.denoising_loss(gaussian_model, seed=99, draws=16)


@pytest.fixture(scope="module")
def sign_noise(pictures):
  """The control at full strength: every pixel moved by the radius."""
  levels = np.random.default_rng(4).choice([-RADIUS_255, RADIUS_255], pictures.shape)
  return np.clip(pictures + levels, 0, 255).astype(np.uint8)


def test_a_max_step_hurts_the_attacked_model_more_than_noise(
  case, outcome, loss, pictures, sign_noise
):
  if case.name not in RAISE_THE_DENOISING_LOSS:
    pytest.skip("does not aim at the denoising loss of a given model")
  clean, noisy, protected = (loss(case.params, p) for p in (pictures, sign_noise, outcome[2]))
  assert clean < noisy < protected
  assert protected - clean > 1.5 * (noisy - clean)


def test_max_min_leaves_more_loss_than_noise(case, outcome, loss, pictures, sign_noise):
  state, infos, protected = outcome
  if not case.protection.phases:
    pytest.skip("has no surrogate")
  surrogate = state.surrogate.params
  assert loss(surrogate, protected) > loss(surrogate, pictures)
  assert np.mean(infos[-1].train_loss) < np.mean(infos[0].train_loss)
  # The objective itself: what is left to the model that knows the protected pictures best.
  clean, noisy, left = (loss(fit(case.model, p), p) for p in (pictures, sign_noise, protected))
  assert clean < noisy < left


def own_loss(case, state, pictures: np.ndarray) -> float:
  """The method's own objective at these pictures, with draws that it has not seen."""
  delta = (pictures.astype(np.float32) - batches.unbatch(case.data.images, len(pictures))) / 255
  rows = np.arange(case.data.ids.size) % len(pictures)
  delta = jnp.asarray(delta[rows].reshape(state.delta.shape))
  inner = getattr(state, "inner", state)._replace(delta=delta)
  if hasattr(inner, "latents"):  # What moves; they are those of the saved pictures here.
    images = case.data.images / 255 + delta
    found = jax.vmap(lambda batch: case.model.encode(case.params, batch, None))(images)
    inner = inner._replace(latents=found)
  if hasattr(inner, "log_sigmas"):  # Its blurs are so narrow here that they leave it as it is.
    inner = inner._replace(variable=delta, log_sigmas=jnp.full_like(inner.log_sigmas, -9.0))
  state = state._replace(inner=inner) if hasattr(state, "inner") else inner
  losses = []
  for seed in range(6):
    _, info = case.update(
      jax.random.key(100 + seed), state, case.data, case.params, jnp.int32(PERTURB)
    )
    losses.append(np.sum(info.loss * case.data.weight) / np.sum(case.data.weight))
  return float(np.mean(losses))


def test_its_own_objective_falls_by_more_than_under_noise(case, outcome, pictures, sign_noise):
  if not case.protection.needs_params:
    pytest.skip("attacks no given model")
  if case.name == "diffusion_guard":
    pytest.skip("what this model predicts of noise is noise: test_diffusion_guard has another one")
  state, _, protected = outcome
  clean, noisy, left = (own_loss(case, state, p) for p in (pictures, sign_noise, protected))
  assert left < min(clean, noisy)
  # Noise raises the loss that SDS on latents lowers, by more than there is to lower.
  if case.name != "sds_z":
    assert clean - left > 1.5 * abs(clean - noisy)
