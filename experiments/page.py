"""Opens the page for artists in the browser: `python -m experiments.page --help`."""

from __future__ import annotations

import sys

from udp_jax import page

if __name__ == "__main__":
  sys.exit(page.main(sys.argv[1:]))
