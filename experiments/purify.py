"""Purifies a folder of pictures of any sizes with any method.

  python -m experiments.purify --input=PROTECTED --output=PURIFIED --method=jpeg --option=quality=60
  python -m experiments.purify --input=PROTECTED --output=PURIFIED --config=impress_glaze \\
    --model=FOLDER

Methods: the modules of udp_jax/purifiers. Files keep their names, transparency, colour profile,
EXIF and captions, as with `protect`; grey pictures stay grey. After a kill, the same command
continues at the next batch of pictures.
"""

from udp_jax.commands.purify import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
  start()
