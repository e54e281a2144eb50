"""The metrics of each kind of cell, and what the report says of them."""

from __future__ import annotations

from typing import NamedTuple

PICTURES, EDITS, SAMPLES = "pictures", "edits", "samples"


class Metric(NamedTuple):
  """One metric of one kind of cell.

  Attributes:
    key: in cell.json and report.json.
    label: in tables.
    help: what it is, in a sentence or two.
    digits: after the point.
    better: "higher" or "lower" from the side of the pictures' owner, None for neither.
    survives: whether the survival of its effect is worked out.
    of_set: one number for a whole set; no spread over pictures.
    headline: among the first that a report shows, and compared with noise.
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
  """All metrics, by kind of cell, the most telling ones first.

  Args:
    perceptual_label: name of the perceptual distance.
    feature_label: name of a Frechet distance in the features that are used.
    num_samples: of each model.
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
        "Perceptual distance between the edit and that of the clean picture after the same "
        "purifier, same draws; 0 is identical.",
        digits=4,
        better="higher",
        survives=True,
        headline=True,
      ),
      *_compared(perceptual_label, "edit", "edit of the clean picture, same draws"),
      _STYLE._replace(
        help="Share of edits that a classifier of real pictures takes for the picture's class."
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
        help="Cosine of a sample's face embedding and the mean one of the clean pictures."
      ),
      Metric(
        "fd",
        f"{feature_label}, {num_samples} samples",
        "Frechet distance of the samples from real pictures.",
        digits=1,
        better="higher",
        of_set=True,
      ),
      Metric(
        "mmd",
        f"MMD, {num_samples} samples",
        "Polynomial-kernel distance of the samples from real pictures.",
        digits=4,
        better="higher",
        of_set=True,
      ),
    ],
  }


def _compared(perceptual_label: str, what: str, to: str) -> list[Metric]:
  """Likeness of a picture to its clean one, or of its edit to that one's.

  The owner wants protected pictures near the clean ones, and edits far from the clean ones' edits.
  """
  edits = what == "edit"
  near, far = ("lower", "higher") if edits else ("higher", "lower")
  pair = f"the {what} and the {to}"
  found = [
    Metric(
      "perceptual",
      perceptual_label,
      f"Perceptual distance between {pair}; 0 is identical.",
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
    # Infinite between equal pictures: no difference can be taken from it.
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
  """What takes pictures for their class, and needs weights or draws that a config gives."""
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


_STRENGTH = [
  # Distances from what the purifier makes of the clean picture: what it does by itself is taken out
  # before the norm, which a difference of two distances would not do.
  Metric(
    "latent_shift",
    "Latent shift",
    "Distance of the VAE's code from that of the clean picture after the same purifier, over the "
    "spread of clean codes.",
    better="higher",
    survives=True,
    headline=True,
  ),
  Metric(
    "latent_distance",
    "Latent distance",
    "Distance of the VAE's code from the clean picture's, over the spread of clean codes.",
    better="higher",
    survives=True,
  ),
  Metric(
    "denoising_loss",
    "Denoising loss",
    "Loss of the model as it is, at timesteps and noises that nothing else has used.",
    digits=4,
    better="higher",
    survives=True,
    headline=True,
  ),
  Metric(
    "inconsistency",
    "Inconsistency",
    "Mean square of VAE(picture) - picture: what IMPRESS lowers.",
    digits=5,
    survives=True,
  ),
]

_LEARNED = [
  Metric(
    "nearest_clean",
    "Nearest clean",
    "Feature distance of a sample to the nearest of the clean pictures that were to be learned.",
    better="higher",
    survives=True,
    headline=True,
  ),
  Metric(
    "precision",
    "Precision",
    "Share of samples that look like real pictures (k = 3; clean and held-out ones).",
    better="lower",
    survives=True,
  ),
  Metric(
    "recall",
    "Recall",
    "Share of real pictures that samples come near to.",
    better="lower",
    survives=True,
  ),
  Metric(
    "loss_clean",
    "Loss, clean",
    "Denoising loss of the trained model on the clean pictures: what it learned of them.",
    digits=4,
    better="higher",
    survives=True,
    headline=True,
  ),
  Metric(
    "loss_holdout",
    "Loss, held-out",
    "Denoising loss of the trained model on held-out clean pictures.",
    digits=4,
    better="higher",
    survives=True,
  ),
  Metric(
    "nearest_holdout",
    "Nearest held-out",
    "Feature distance of a sample to the nearest held-out picture.",
    better="higher",
    survives=True,
  ),
]

_STYLE = Metric(
  "style",
  "Style accuracy",
  "Share of samples that a classifier of real pictures takes for the class that was asked for.",
  better="lower",
  survives=True,
)

_IDENTITY = Metric(
  "identity",
  "Identity (cosine)",
  "Cosine of face embeddings of the edit and the clean picture.",
  better="lower",
  survives=True,
)
