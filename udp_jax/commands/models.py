"""Says which models are here and what each protects against: the main of `udp-jax models`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from udp_jax.commands import cli

_MORE = """\
More models, on a machine with network access:
  hf download OWNER/NAME --local-dir FOLDER    Stable Diffusion 1.x, 2.x or XL, or a DDPM
  udp-jax models FOLDER                        what is it?
  udp-jax protect PICTURES --model=FOLDER"""
FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("model", None, "A folder, or a name: what is it?")


def main(argv: Sequence[str]) -> int:
  """Prints what a model is, or all models that are here; returns the exit code."""
  del argv
  from udp_jax.errors import UserError
  from udp_jax.studies import available_models

  if FLAGS.model:
    print(_printable(available_models.describe(FLAGS.model, FLAGS.model)))
    return 0
  for name, path in available_models.available():
    try:
      said = available_models.describe(name, path)
    except UserError as error:
      said = f"{name}\n  not supported: {' '.join(str(error).split())}"
    print(_printable(said), end="\n\n")
  hub = available_models.hub_cache()
  print(f"Models of the Hugging Face cache are looked for in {hub}.\n{_MORE}")
  return 0


def _printable(text: str) -> str:
  from udp_jax.data import naming

  return "\n".join(map(naming.printable, text.splitlines()))


def start(call: cli.Call | None = None) -> None:
  """Defines the flags and runs `main`, as `udp-jax` calls it."""
  define()
  cli.run(main, several=False, call=call)
