"""Makes .github/report.png: the top of the demo's report, as Chromium shows it.

make demo && python .github/report.py runs/demo/report.html
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, COLOURS = 1280, 4000, 256

page, target = Path(sys.argv[1]).resolve(), Path(__file__).with_suffix(".png")
flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
subprocess.run(["chromium", *flags, f"--screenshot={target}", page.as_uri()], check=True)
shown = Image.open(target).convert("RGB").crop((0, 0, WIDTH, int(sys.argv[2])))
shown.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
