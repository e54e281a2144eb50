"""A worker that computes nothing: it answers by the protocol with the times it was told."""

from __future__ import annotations

import json
import os
import sys
import time

from udp_jax.benchmark import serve

SECONDS = json.loads(sys.argv[1]) if len(sys.argv) > 1 else [1.0]
RATES = {"float32": 100.0, "bfloat16": 200.0, "float32/tf32": 100.0, "float32/highest": 50.0}
asked = 0


def prepare(works, **spec):
  print("a library that prints to stdout")
  os.write(1, b"and one below Python\n")
  tflop = {work: 0.5 for work in works}
  return {"compile_s": 2.0, "warmup_s": 1.0, "compile_peak_rss_mib": 20.0, "tflop": tflop}


def run(work):
  global asked
  asked += 1
  return {"seconds": SECONDS[(asked - 1) % len(SECONDS)], "work": work}


def fail(message):
  raise ValueError(message)


def die(code):
  print("last words", file=sys.stderr, flush=True)
  os._exit(code)


def spin(seconds):
  deadline = time.process_time() + seconds
  while time.process_time() < deadline:
    pass
  return {}


if __name__ == "__main__":
  serve.serve(
    {
      "prepare": prepare,
      "run": run,
      "memory": lambda work: serve.measured(lambda: None),
      "copy": lambda mib, device: {"gbs": 20.0},
      "fail": fail,
      "die": die,
      "spin": spin,
      "sleep": lambda seconds: time.sleep(seconds) or {},
      "info": lambda device: {"version": "1.2", "diffusers": "3.4", "threads": 2},
      "matmul": lambda size, rates, device: {"gflops": {name: RATES[name] for name in rates}},
    }
  )
