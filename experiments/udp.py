"""Protects pictures with UDP and controls, and measures what a diffusion model learns from them.

python -m experiments.udp --config=demo --workdir=runs/udp
"""

from experiments import _study

if __name__ == "__main__":
  _study.start("udp")
