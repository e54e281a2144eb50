"""Live comparison with PyTorch diffusers: `make parity`, in a virtual environment of its own.

The ordinary tests do not need PyTorch; they use the values in tests/goldens instead.
"""

import sys
from pathlib import Path

# The architectures and the random weights are those of the goldens.
sys.path.insert(0, str(Path(__file__).parents[1] / "goldens"))
