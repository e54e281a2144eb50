"""CPU time of one step of the CIFAR-10 model on one core, to compare two versions of the code.

  python -m udp_jax.benchmark.cpu_time --work=max --batch=16 --dtype=float32 --core=0

It measures CPU time, not wall time: the process is pinned to a core and only its own work counts,
so a busy machine disturbs little. Run it before and after a change. `scratch_mib` is XLA's figure
for the compiled round. The entry points set GLIBC_TUNABLES and XLA_FLAGS; this command does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics


def main() -> None:
  """Measures and prints one line of JSON."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--work", default="max", choices=("min", "max", "round", "joint"))
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--steps", type=int, default=1, help="train and perturb steps in a round")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--core", type=int, default=0, help="core to be pinned to; -1 for all")
  parser.add_argument("--conv_method", default="")
  parser.add_argument("--small", action="store_true", help="32 channels instead of 128 to 256")
  arguments = parser.parse_args()
  if arguments.core >= 0:
    # Before jax starts its threads.
    os.sched_setaffinity(0, {arguments.core})
  from udp_jax.benchmark import serve
  from udp_jax.benchmark.contestant import Contestant

  unet = {"dropout": 0.1} | ({"block_out_channels": (32,) * 4} if arguments.small else {})
  performance = {"dtype": arguments.dtype, "conv_method": arguments.conv_method, "remat": False}
  contestant = Contestant()
  facts = contestant.prepare(
    [arguments.work],
    unet=unet,
    performance=performance,
    batch=arguments.batch,
    train_steps=arguments.steps,
    perturb_steps=arguments.steps,
    joint=arguments.work == "joint",
  )
  runs = [serve.timed_cpu(lambda: contestant.run(arguments.work)) for _ in range(arguments.repeats)]
  cpu = [seconds / arguments.steps for seconds in runs]
  print(
    json.dumps(
      {
        **vars(arguments),
        "cpu_s": [round(seconds, 4) for seconds in cpu],
        "median_cpu_s": round(statistics.median(cpu), 4),
        "min_cpu_s": round(min(cpu), 4),
        "compile_s": round(facts["compile_s"], 1),
        "tflop": facts["tflop"][arguments.work],
        "scratch_mib": round(contestant.scratch_mib()),
        "peak_rss_mib": round(contestant.memory(arguments.work)["peak_rss_mib"]),
      }
    )
  )


if __name__ == "__main__":
  main()
