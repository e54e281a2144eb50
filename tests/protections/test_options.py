"""The groups of options: one default each, and nothing that is asked for is ignored."""

from __future__ import annotations

import pytest

from experiments.configs import common
from udp_jax import protections, registry
from udp_jax.errors import ConfigError
from udp_jax.models.sampling import Sampling
from udp_jax.protections.aspl import aspl
from udp_jax.protections.fsmg import fsmg
from udp_jax.protections.glaze import glaze
from udp_jax.protections.options import Game, Surrogate
from udp_jax.protections.photoguard_diffusion import photoguard_diffusion
from udp_jax.protections.udp import udp

SIZES = {"radius": 0.1, "step_size": 0.01}


@pytest.mark.parametrize("name", ["udp", "eudp"])
def test_the_defaults_are_the_measured_ones(name):
  known = registry.fields(registry.constructor("udp_jax.protections", name))
  assert {option: known[option].default for option in common.GAME} == common.GAME


@pytest.mark.parametrize(
  ("method", "group", "message"),
  [
    (udp, {"surrogate": Surrogate(weight_decay=0.1)}, "udp has no use for Surrogate.weight_decay"),
    (aspl, {"game": Game(warmup_rounds=1)}, "aspl has no use for Game.warmup_rounds"),
    (fsmg, {"game": Game(joint_gradients=True)}, "fsmg has no use for Game.joint_gradients"),
    (aspl, {"surrogate": Surrogate(restart_every=2)}, "aspl has no use for Surrogate.restart_ev"),
    (fsmg, {"sampling": Sampling(eta=0.5)}, "fsmg has no use for Sampling.eta"),
    (glaze, {"sampling": Sampling(sampler="ddpm")}, "glaze has no use for Sampling.sampler"),
    (
      photoguard_diffusion,
      {"sampling": Sampling(scheduler={})},
      "photoguard_diffusion has no use for Sampling.scheduler",
    ),
  ],
)
def test_what_a_method_has_no_use_for_is_refused(latent_model, method, group, message):
  with pytest.raises(ConfigError, match=message):
    method(latent_model, **SIZES, **group)
  (dataclass,) = group.values()
  option = message.rsplit(".", 1)[1]
  with pytest.raises(ConfigError, match=f"has no option '{option}"):
    values = {name: v for name, v in vars(dataclass).items() if name.startswith(option)}
    protections.build(method.__name__, latent_model, SIZES | values)


def test_joint_steps_have_one_draw(gaussian_model):
  with pytest.raises(ConfigError, match="does not go with .* num_draws"):
    options = {"joint_gradients": True, "num_draws": 2}
    protections.build("udp", gaussian_model, SIZES | options)
