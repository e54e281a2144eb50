"""DiffPure and GrIDPure with a prior that nobody here trained: galaxygrad's, for galaxies.

python -m experiments.impress --config=galaxies --workdir=runs/galaxies
Needs: pip install --no-deps galaxygrad==0.2.1. Hardware: 2 CPU cores. It shows that a purifier's
model may be another one than the attacked tiny_ldm. A prior for galaxies knows no photographs, so
it is weak on them: what it does not remove, a prior for photographs might.
"""

from experiments.configs import matrix as m
from experiments.configs.impress import demo


def get_config(variant=None):
  """The demo's protections and edits with two purifiers; `variant` "smoke" takes seconds."""
  config = demo.get_config()
  config.title = "Purifiers with a prior that is not the attacked model"
  config.purifier_model.path = "galaxygrad:hsc64"
  config.purifiers = {"diffpure": {"timestep": 50}, "gridpure": {"timestep": 10}}
  config.purifiers.gridpure.num_iterations = 4
  config.use_purifiers = ("diffpure", "gridpure")
  config.use_threats = ("img2img",)
  return m.finish(config, variant)
