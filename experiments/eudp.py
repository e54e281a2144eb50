"""Protects pictures with EUDP and controls, and measures what a diffusion model learns from them.

python -m experiments.eudp --config=demo --workdir=runs/demo
"""

from experiments import _study

if __name__ == "__main__":
  _study.start("eudp")
