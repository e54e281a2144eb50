"""Makes .github/report.png: the pictures of the demo's report, as Chromium shows them.

make demo && python .github/report.py runs/demo/report.html
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image

# From the first picture to the last sample.
WIDTH, TOP, BOTTOM, COLOURS = 1280, 385, 2030, 256

page, target = Path(sys.argv[1]).resolve(), Path(__file__).with_suffix(".png")
flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{BOTTOM}"]
subprocess.run(["chromium", *flags, f"--screenshot={target}", page.as_uri()], check=True)
shown = Image.open(target).convert("RGB").crop((0, TOP, WIDTH, BOTTOM))
shown.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
