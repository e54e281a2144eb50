"""Makes .github/strength.png: a crop of a photograph, clean and protected at every strength.

  python .github/strength.py

EUDP against tiny_ldm in 6 rounds (the default is 20), shown at twice the size.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import udp_jax
from udp_jax.data import budget, builtin, images

TOP, LEFT, SIDE, SCALE, LINE = 40, 150, 96, 2, 14

clean = images.read_image(builtin.find_photograph("cat")).pixels[TOP:, LEFT:][:SIDE, :SIDE]
model = udp_jax.load_model("tiny_ldm")
crops = {"clean": clean}
for name, levels in budget.STRENGTHS.items():
  crops[f"{name}: {levels:g} levels"] = udp_jax.protect(clean, model, strength=name, num_rounds=6)
width = SIDE * SCALE
page = Image.new("RGB", (width * len(crops), width + LINE), "white")
for number, (label, crop) in enumerate(crops.items()):
  shown = Image.fromarray(np.ascontiguousarray(crop)).resize(
    (width, width), Image.Resampling.NEAREST
  )
  page.paste(shown, (number * width, LINE))
  ImageDraw.Draw(page).text((number * width + 2, 1), label, fill="black")
page.save(Path(__file__).with_suffix(".png"), optimize=True)
