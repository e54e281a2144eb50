"""Measures folders of pictures of any origin: samples against real, protected against clean ones.

python -m experiments.evaluate --real=HELD_OUT --samples=SAMPLES
python -m experiments.evaluate --clean=CLEAN --protected=PROTECTED --radius_255=16
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _cli
from udp_jax.errors import BadDataError, ConfigError
from udp_jax.runtime import processes

_REAL = flags.DEFINE_string("real", None, "Folder of real pictures that nobody trained on.")
_SAMPLES = flags.DEFINE_string("samples", None, "Folder of generated pictures.")
_CLEAN = flags.DEFINE_string("clean", None, "Folder of clean pictures.")
_PROTECTED = flags.DEFINE_string("protected", None, "Folder of the same pictures, protected.")
_RADIUS = flags.DEFINE_float("radius_255", None, "Budget in 8-bit levels, for RMS / budget.")
_FEATURES = flags.DEFINE_string(
  "features",
  "efficientnet_lite0",
  "Feature network: efficientnet_lite0, or inception_v3 with --weights.",
)
_WEIGHTS = flags.DEFINE_string("weights", None, "Weight file of the feature network.")
_JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")


def main(argv: Sequence[str]) -> int:
  """Runs the measurements that the flags ask for; returns the exit code."""
  del argv
  pairs = (_REAL.value, _SAMPLES.value), (_CLEAN.value, _PROTECTED.value)
  if not any(all(pair) for pair in pairs) or any(any(pair) and not all(pair) for pair in pairs):
    raise ConfigError("give --real and --samples, or --clean and --protected, or all; see --help")
  radius_255 = _RADIUS.value
  if _CLEAN.value and radius_255 is None:
    raise ConfigError("--radius_255 is needed with --clean and --protected")
  from udp_jax.data import places
  from udp_jax.data.budget import check_radius_255

  if radius_255 is not None:
    check_radius_255("--radius_255", radius_255)
  folders = {"--real": _REAL, "--samples": _SAMPLES, "--clean": _CLEAN, "--protected": _PROTECTED}
  with places.use(
    pictures={name: flag.value for name, flag in folders.items()},
    named={"--weights": _WEIGHTS.value},
    reports={"--json": _JSON.value},
  ) as used:
    # One process reads whole folders; the others wait for it.
    processes.from_main(lambda: _measure(radius_255, used.get("--json")), "evaluate")
  return 0


def _measure(radius_255: float | None, report: Path | None) -> None:
  from udp_jax.data import manifest
  from udp_jax.metrics import sets, visibility
  from udp_jax.models import features
  from udp_jax.runtime import files

  found: dict[str, dict] = {}
  if _REAL.value and _SAMPLES.value:
    extractor = features.load(_FEATURES.value, weights=_WEIGHTS.value)
    real, samples = (
      features.extract(extractor, manifest.read_folder(f)[0].images, progress=True)
      for f in (_REAL.value, _SAMPLES.value)
    )
    found[extractor.label] = sets.distribution_metrics(real, samples)
  if _CLEAN.value and _PROTECTED.value and radius_255 is not None:
    clean, protected = (manifest.read_folder(f)[0] for f in (_CLEAN.value, _PROTECTED.value))
    if clean.names != protected.names or clean.images.shape != protected.images.shape:
      raise BadDataError(
        f"{_CLEAN.value} and {_PROTECTED.value} differ in names or sizes: see experiments.verify"
      )
    found["pictures"] = visibility.picture_metrics(clean.images, protected.images, radius_255)
  for group, metrics in found.items():
    print(group)
    for name, value in metrics.items():
      print(f"  {name:12} {value:.6g}")
  if report:
    files.write_json(report, found)


if __name__ == "__main__":
  _cli.run(main)
