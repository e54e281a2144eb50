r"""Checks from the saved files alone whether protected images keep their budget.

  python -m experiments.verify --clean=DIR --protected=DIR --radius_255=8 [--json=PATH|-]

Without --radius_255 the budget is the one in the protected folder's manifest. Works on folders of
any origin: files are matched by their relative name without extension. Exit code 0: every file
keeps the budget. 1: some do not, or have no counterpart; they are listed. 2: a folder is missing or
holds no images, or a flag is missing.
"""

from udp_jax.commands.verify import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
  start()
