"""Protects pictures with UDP and its controls, and judges what a diffusion model learns from them.

python -m experiments.udp --config=demo --workdir=runs/udp
"""

from experiments import _study

if __name__ == "__main__":
  _study.start("udp")
