"""The metrics of each kind of cell, and their descriptions in the report."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from udp_jax.metrics import style
from udp_jax.report.names import EDITS, PICTURES, SAMPLES


class Metric(NamedTuple):
  """One metric of one kind of cell.

  Attributes:
    key: name in cell.json and report.json.
    label: name in tables.
    help: a sentence or two on what it measures.
    digits: number of digits after the point.
    better: "higher" or "lower", whichever the pictures' owner prefers; None for neither.
    survives: whether the report computes how much of the effect survives purification.
    of_set: one number for a whole set, so there is no spread over pictures.
    headline: whether the report shows it among the first, compared with noise.
  """

  key: str
  label: str
  help: str
  digits: int = 3
  better: str | None = None
  survives: bool = False
  of_set: bool = False
  headline: bool = False


def metrics(perceptual_label: str, feature_label: str, num_samples: int) -> dict[str, list[Metric]]:
  """Returns all metrics by kind of cell, the most informative ones first.

  Args:
    perceptual_label: name of the perceptual distance.
    feature_label: name of the Frechet distance in the features in use.
    num_samples: number of samples of each model.
  """
  return {
    PICTURES: [
      *_compared(perceptual_label, "picture", "clean one"),
      *_STRENGTH,
      *_classified("pictures", "picture's class"),
    ],
    EDITS: [
      Metric(
        "edit_shift",
        f"Edit shift ({perceptual_label})",
        f"Perceptual distance ({perceptual_label}) between the edit and that of the clean picture "
        "after the same purifier, same draws; 0 is identical.",
        digits=4,
        better="higher",
        survives=True,
        headline=True,
      ),
      *_compared(perceptual_label, "edit", "edit of the clean picture, same draws"),
      _STYLE._replace(
        help="Share of edits that are taken for the picture's class by a classifier of real "
        "pictures that has not seen this picture."
      ),
      *_classified("edits", "picture's class"),
      Metric(
        "clip_likeness",
        "CLIP likeness",
        "Cosine of CLIP's vectors of the edit and the clean picture; 1 is identical.",
        better="lower",
        survives=True,
      ),
      _IDENTITY,
    ],
    SAMPLES: [
      *_LEARNED,
      _STYLE,
      *_classified("samples", "class that was asked for"),
      _IDENTITY._replace(
        help="Cosine of a sample's face embedding and the mean one of the clean pictures. "
        + _UNALIGNED
      ),
      Metric(
        "fd",
        f"{feature_label}, {num_samples} samples",
        "Frechet distance of the samples from real pictures, as many of either.",
        digits=1,
        better="higher",
        of_set=True,
      ),
      Metric(
        "mmd",
        f"MMD, {num_samples} samples",
        "Polynomial-kernel distance of the samples from real pictures, as many of either.",
        digits=4,
        better="higher",
        of_set=True,
      ),
    ],
  }


def _compared(perceptual_label: str, what: str, to: str) -> list[Metric]:
  """Metrics that compare a picture with its clean one, or its edit with the clean one's edit.

  The owner wants protected pictures close to the clean ones, and their edits far from the edits of
  the clean ones.
  """
  edits = what == "edit"
  near, far = ("lower", "higher") if edits else ("higher", "lower")
  pair = f"the {what} and the {to}"
  found = [
    Metric(
      "perceptual",
      perceptual_label,
      f"Perceptual distance ({perceptual_label}) between {pair}; 0 is identical.",
      digits=4,
      better=far,
      survives=edits,
    ),
    Metric(
      "ssim",
      "SSIM",
      f"Structural similarity of {pair}; 1 is identical.",
      better=near,
      survives=edits,
    ),
    Metric(
      "vif",
      "VIFp",
      f"Visual information of the {to} that the {what} keeps; 1 is identical.",
      better=near,
      survives=edits,
    ),
    # PSNR is infinite between equal pictures, so differences of it are undefined.
    Metric(
      "psnr",
      "PSNR (dB)",
      f"Of {pair}, mean over the pictures that differ.",
      digits=2,
      better=near,
    ),
    Metric(
      "rmse",
      "RMS",
      f"Root mean square difference of {pair}, in 8-bit levels.",
      digits=2,
      better=far,
      survives=edits,
    ),
  ]
  if not edits:
    help_text = "Largest change of any value, in 8-bit levels, mean over pictures."
    found.append(Metric("max_abs", "Largest change", help_text, digits=1))
  return found


def _classified(what: str, own: str) -> list[Metric]:
  """Metrics of classifiers, which need weights or draws that a config provides."""
  return [
    Metric(
      "clip_style",
      "CLIP style accuracy",
      f"Share of {what} for which the {own} is the first guess of CLIP, which was not trained on "
      "them (or among the first ones: config.evaluation.clip_top).",
      better="lower",
      survives=True,
    ),
    Metric(
      "prompt_hits",
      "Diffusion classifier",
      f"Share of {what} whose noise the untouched model predicts best by the prompt of the {own}.",
      better="lower",
      survives=True,
    ),
  ]


# Metrics whose survival is computed; `_HIGHER` are those that the owner wants high.
_SURVIVES = partial(Metric, survives=True)
_HIGHER = partial(_SURVIVES, better="higher")


_STRENGTH = [
  # Distances from the purified clean picture. The purifier's own shift is subtracted before the
  # norm, which a difference of two distances could not do.
  _HIGHER(
    "latent_shift",
    "Latent shift",
    "Distance of the VAE's code from that of the clean picture after the same purifier, over the "
    "spread of clean codes.",
    headline=True,
  ),
  _HIGHER(
    "latent_distance",
    "Latent distance",
    "Distance of the VAE's code from the clean picture's, over the spread of clean codes.",
  ),
  _HIGHER(
    "denoising_loss",
    "Denoising loss",
    "Loss of the model as it is, at timesteps and noises that nothing else has used.",
    digits=4,
    headline=True,
  ),
  _SURVIVES(
    "inconsistency",
    "Inconsistency",
    "Mean square of VAE(picture) - picture: what IMPRESS lowers.",
    digits=5,
  ),
]

_LEARNED = [
  _HIGHER(
    "nearest_clean",
    "Nearest clean",
    "Feature distance of a sample to the nearest of the clean pictures that were to be learned.",
    headline=True,
  ),
  _SURVIVES(
    "precision",
    "Precision",
    "Share of samples that look like real pictures (k = 3; clean and held-out ones, as many of "
    "either).",
    better="lower",
  ),
  _SURVIVES(
    "recall",
    "Recall",
    "Share of real pictures that samples come near to.",
    better="lower",
  ),
  _HIGHER(
    "loss_clean",
    "Loss, clean",
    "Denoising loss of the trained model on the clean pictures: what it learned of them.",
    digits=4,
    headline=True,
  ),
  _HIGHER(
    "loss_holdout",
    "Loss, held-out",
    "Denoising loss of the trained model on held-out clean pictures.",
    digits=4,
  ),
  _HIGHER(
    "nearest_holdout",
    "Nearest held-out",
    "Feature distance of a sample to the nearest held-out picture.",
  ),
]

_STYLE = Metric(
  style.METRIC,
  "Style accuracy (unseen)",
  "Share of samples taken for the class that was asked for, by a classifier of held-out pictures.",
  better="lower",
  survives=True,
)

_UNALIGNED = (
  "Faces are not aligned: values are below those of pipelines that do, and mean nothing where no "
  "face fills the picture."
)
_IDENTITY = Metric(
  "identity",
  "Identity (cosine)",
  f"Cosine of face embeddings of the edit and the clean picture. {_UNALIGNED}",
  better="lower",
  survives=True,
)
