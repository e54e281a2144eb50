"""Smooth pictures, the codec, and purifiers applied to them."""

from __future__ import annotations

import io

import jax
import numpy as np
from PIL import Image

from udp_jax import purifiers

KEYS = purifiers.picture_keys(jax.random.key(3), np.arange(6))


def photograph(count=6, height=24, width=30):
  y, x, c = np.mgrid[:height, :width, :3]
  waves = [np.sin(0.3 * (n + 1) * x + 0.2 * y + c) for n in range(count)]
  return np.clip(128 + 90 * np.stack(waves), 0, 255).astype(np.uint8)


def through_pillow(pixels, quality, subsampling="4:2:0"):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
  return np.asarray(Image.open(buffer))


def apply(purifier, images, keys=KEYS):
  return np.asarray(jax.jit(purifier.apply)(purifier.init(KEYS[0]), keys[: len(images)], images))


def apply_with(purifier, pipeline, images):
  params = purifier.init(KEYS[0], pipeline.params)
  return np.asarray(jax.jit(purifier.apply)(params, KEYS[: len(images)], images))
