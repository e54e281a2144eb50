"""Writes encoders.npz in this folder from PyTorch and transformers, for tests without them.

Run it in the virtual environment of `make parity`, from the repository's root:

  .venv-parity/bin/python tests/goldens/make_encoder_goldens.py

The file changes only if its numerics do. It holds outputs of the models of encoder_models.py:

  clip/         images, texts: unit vectors by transformers' CLIPModel
  clip_legacy/  texts, where the config's end of text is 2
  face/         vectors by `IResNet` below; names and shapes of its tensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import encoder_models
import numpy as np
import torch
from make_sd_goldens import load, nchw
from torch import nn
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Block(nn.Module):
  """A residual block of ArcFace's network, tensors named as in insightface."""

  def __init__(self, inputs: int, outputs: int, stride: int, shortcut: bool):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
    self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
    self.prelu = nn.PReLU(outputs)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
    self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
    self.downsample = None
    if shortcut:
      reduce = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
      self.downsample = nn.Sequential(reduce, nn.BatchNorm2d(outputs, eps=1e-5))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
    hidden = self.prelu(self.bn2(self.conv1(self.bn1(x))))
    return self.bn3(self.conv2(hidden)) + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
  """ArcFace's network (deepinsight/insightface, arcface_torch) of any depth and width."""

  def __init__(self, blocks: tuple, widths: tuple, size: int, dim: int):
    super().__init__()
    self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    self.bn1 = nn.BatchNorm2d(widths[0], eps=1e-5)
    self.prelu = nn.PReLU(widths[0])
    inputs = widths[0]
    for number, (count, width) in enumerate(zip(blocks, widths), 1):
      first = Block(inputs, width, 2, True)
      stage = nn.Sequential(first, *(Block(width, width, 1, False) for _ in range(count - 1)))
      setattr(self, f"layer{number}", stage)
      inputs = width
    self.bn2 = nn.BatchNorm2d(inputs, eps=1e-5)
    self.fc = nn.Linear(inputs * (size // 16) ** 2, dim)
    self.features = nn.BatchNorm1d(dim, eps=1e-5)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """(B, 3, size, size) in [-1, 1] -> (B, dim)."""
    x = self.prelu(self.bn1(self.conv1(x)))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


def face(blocks: tuple, widths: tuple, size: int, dim: int) -> IResNet:
  """The network with our weights, in evaluation mode."""
  model = IResNet(blocks, widths, size, dim).eval()
  shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
  made = {k: torch.from_numpy(v) for k, v in encoder_models.face_tensors(shapes).items()}
  model.load_state_dict(made, strict=False)
  return model


def clip(fields: Mapping) -> CLIPModel:
  """Transformers' CLIPModel with our weights."""
  return load(CLIPModel(CLIPConfig(**fields)))


def run_clip(model: CLIPModel, images: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
  """Unit vectors of pictures in [0, 1] of the model's own size, and of token ids."""
  pixels = nchw((images - _MEAN) / _DEVIATION)
  with torch.no_grad():
    found = model(input_ids=torch.from_numpy(ids), pixel_values=pixels)
  return {"images": found.image_embeds.numpy(), "texts": found.text_embeds.numpy()}


def main() -> None:
  """Writes the file."""
  values = {}
  for name, fields in (("clip", encoder_models.CLIP), ("clip_legacy", encoder_models.CLIP_LEGACY)):
    made = run_clip(clip(fields), *encoder_models.clip_inputs(fields))
    values |= {f"{name}/{key}": value for key, value in made.items()}
  settings = (getattr(encoder_models, f"FACE_{n}") for n in ("BLOCKS", "WIDTHS", "SIZE", "DIM"))
  model = face(*settings)
  with torch.no_grad():
    values["face/vectors"] = model(nchw(encoder_models.face_inputs())).numpy()
  tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
  values["face/names"] = np.array(list(tensors))
  values["face/shapes"] = np.array([" ".join(map(str, v.shape)) for v in tensors.values()])
  np.savez_compressed(HERE / "encoders.npz", **values)


if __name__ == "__main__":
  main()
