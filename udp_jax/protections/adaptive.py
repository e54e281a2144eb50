"""Protections that expect purifiers: two options of `Adaptive` that all methods share.

transforms           names, comma-separated: the objective becomes its expectation over randomly
                     chosen ones (`transforms.over_transforms`), drawn for each picture and step
consistency_weight   adds this multiple of `objectives.latent.consistency`, so that the VAE
                     reproduces the protected picture and IMPRESS finds nothing to change

| name | what is applied to a picture |
|---|---|
| `identity` | nothing; useful beside other transforms |
| `jpeg` | quality uniform in [50, 95], chroma halved |
| `resize` | to 1/2, 5/8, 3/4 or 7/8 of its size and back, cubic |
| `blur` | Gaussian, standard deviation uniform in [0.3, 1.5] pixels |
| `noise` | Gaussian, standard deviation uniform in [0, 0.1] on the [0, 1] scale |
| `blur_and_flip` | Gaussian of 7 taps, [0.1, 2.0] pixels; half of the pictures are mirrored |

The ranges are our choice: they include common purifiers (JPEG at 75, noise of 0.05 to 0.1). The
last row is MetaCloak's.
"""

from __future__ import annotations

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import latent
from udp_jax.objectives import transforms as transforms_lib
from udp_jax.objectives.base import Objective, averaged, weighted
from udp_jax.objectives.transforms import over_transforms
from udp_jax.protections.options import Adaptive


def adapted(
  model: DiffusionModel,
  objective: Objective,
  adaptive: Adaptive,
) -> Objective:
  """Returns the adaptive form of `objective`, or `objective` itself if no option is set.

  Args:
    model: the model whose autoencoder must reproduce the pictures.
    objective: the loss that delta minimises.
    adaptive: transforms, weight of the consistency term, and number of draws.

  Raises:
    ConfigError: a transform is unknown, or the weight is negative or set for a pixel model.

  >>> import jax
  >>> from udp_jax.models import toy
  >>> brightness = lambda params, images, cond, keys: (images.mean((1, 2, 3)), {})
  >>> adapted(toy.on_pixels(), brightness, Adaptive()) is brightness
  True
  >>> expecting = adapted(toy.on_pixels(), brightness, Adaptive("identity,blur"))
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> expecting(None, jax.numpy.ones((2, 8, 8, 3)), None, keys)[0].round(3).tolist()
  [1.0, 1.0]
  """
  if adaptive.consistency_weight < 0:
    raise ConfigError(f"consistency_weight must not be negative, got {adaptive.consistency_weight}")
  if adaptive.transforms:
    transforms = transforms_lib.parse(adaptive.transforms)
    objective = over_transforms(objective, transforms, adaptive.num_draws)
  else:
    objective = averaged(objective, adaptive.num_draws)
  if adaptive.consistency_weight:
    term = latent.consistency(model)
    objective = weighted((1.0, objective), (adaptive.consistency_weight, term))
  return objective
