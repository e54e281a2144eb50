"""Opens a page for artists in the browser: drop pictures, compare, download protected files.

  python -m experiments.page --models=FOLDER

Choose a model, a method and a strength, look at before and after, check the promise, and see what
JPEG, blur and IMPRESS leave. One job runs at a time; jobs go on after a reload, a crash or a new
start of the page. Only this machine reaches the page unless --host says otherwise. Needs the extra
`page` (Gradio): pip install 'udp-jax[page]'.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from experiments import _cli
from udp_jax import page

for _name, (_default, _help) in page.FLAGS.items():
  flags.DEFINE_string(_name, _default, _help)


def main(argv: Sequence[str]) -> int:
  """Serves the page until it is stopped; returns the exit code."""
  del argv
  return page.serve({name: str(flags.FLAGS[name].value) for name in page.FLAGS})


if __name__ == "__main__":
  _cli.run(main, resumable=True, several=False)
