"""Says which models are here and what each protects against: the main of `udp-jax models`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from udp_jax.commands import cli

_MORE = """\
--model of `udp-jax protect` takes what is listed here, and also:
  FOLDER                  Stable Diffusion 1.x, 2.x or XL, or a DDPM, as diffusers writes it
  FILE.safetensors        Stable Diffusion in one file; another VAE: --vae=FILE.safetensors
  OWNER/NAME[@REVISION]   a model on the Hugging Face Hub (pip install 'udp-jax[hub]'), downloaded
                          into that cache; its commit is recorded
  pixel                   a small DDPM trained on your pictures alone
For a machine without network, on one with it: hf download OWNER/NAME --local-dir FOLDER
What is in a folder or a file: udp-jax models FOLDER"""
FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("model", None, "A folder, a file, or a name: what is it?")


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
