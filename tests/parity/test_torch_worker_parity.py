"""The benchmark's PyTorch contestant: what it is asked, on a CPU and, with stand-ins, on a GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import _cli
from udp_jax.benchmark import plan
from udp_jax.benchmark.models import diffusers_configs
from udp_jax.benchmark.worker import Worker, WorkerError

SCRIPT = Path(__file__).parents[2] / "udp_jax" / "benchmark" / "torch_worker.py"


def _specs(**changes: Any) -> list[dict[str, Any]]:
  """What `runner` asks of the eager contestants of the GPU's races, at smoke size."""
  config = _cli.get_config("benchmark", "gpu:smoke")
  config.peers.torch = ("as_written", "channels_last")
  # The config takes only the better form, to save time.
  config.races.groups.cifar.peers = config.peers.torch
  found = []
  for task in plan.tasks(config):
    for contestant in plan.contestants(config, task)[1:]:
      spec = {**contestant.prepare, "works": [contestant.asked], "device": "cpu", **changes}
      found.append(spec | diffusers_configs(spec["unet"], spec.get("vae")))
  return found


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
  started = Worker([sys.executable, str(SCRIPT)], tmp_path / "log")
  yield started
  started.stop()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
  """The script as a module; what it sets of PyTorch is undone."""
  monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
  spec = importlib.util.spec_from_file_location("torch_worker", SCRIPT)
  assert spec is not None and spec.loader is not None
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
  allowed, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
  yield made
  torch.backends.cudnn.allow_tf32 = allowed
  torch.set_float32_matmul_precision(precision)


@pytest.fixture
def gpu(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """Lets the CPU pass for a GPU; returns what was asked of it."""
  calls: list[str] = []
  monkeypatch.setattr(module, "_GPU", "cpu")
  answers = {"synchronize": None, "reset_peak_memory_stats": None}
  answers |= {"max_memory_allocated": 3 * 2**20, "get_device_name": "NVIDIA Card"}
  for name, answer in answers.items():
    monkeypatch.setattr(torch.cuda, name, lambda n=name, a=answer: calls.append(n) or a)
  return calls


def test_every_race_of_a_gpu_runs(worker: Worker) -> None:
  specs = _specs()
  # Three works of two variants, and the latent model's.
  assert len(specs) == 7 and {spec["steps"] for spec in specs} == {2}
  for spec in specs:
    said = worker.ask("prepare", **spec)
    (work,) = spec["works"]
    assert said["tflop"][work] > 0 and said["compile_s"] == 0.0
    assert worker.ask("run", work=work)["seconds"] > 0
    memory = worker.ask("memory", work=work)
    assert memory["peak_rss_mib"] > 0 and "device_mib" not in memory


def test_what_a_machine_does_best(worker: Worker) -> None:
  rates = ["bfloat16", "float32/tf32"]
  found = worker.ask("matmul", size=64, rates=rates, device="cpu")["gflops"]
  assert list(found) == rates and min(found.values()) > 0
  assert set(worker.ask("matmul", size=64)["gflops"]) == {"float32", "bfloat16"}
  assert worker.ask("copy", mib=1, device="cpu")["gbs"] > 0
  assert set(worker.ask("info", device="cpu")) >= {"version", "diffusers", "threads"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(worker: Worker) -> None:
  for name, arguments in (("info", {}), ("matmul", {"size": 8}), ("copy", {"mib": 1})):
    with pytest.raises(WorkerError, match="CUDA"):
      worker.ask(name, device="cuda", **arguments)


def test_frozen_networks_may_be_narrow(module: Any) -> None:
  *_, spec = _specs(dtype="bfloat16", frozen_dtype="bfloat16")
  assert spec["works"] == ["max"] and spec["variant"] == "channels_last"
  made = module.Contestant()
  made.prepare(**spec)
  for network in (made._model, made._vae):
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
  assert made._delta.dtype == torch.float32
  made.run("max")
  assert torch.isfinite(made._delta).all()
  # As it is written, and where the denoiser is trained, it stays float32.
  for changes, wide in (({"variant": "as_written"}, True), ({"works": ["min", "max"]}, False)):
    made = module.Contestant()
    made.prepare(**(spec | changes))
    assert {p.dtype for p in made._model.parameters()} == {torch.float32}
    assert {p.dtype for p in made._vae.parameters()} == {torch.float32 if wide else torch.bfloat16}


def _seen(made: Any) -> dict[str, set[Any]]:
  """What layers see in a step: dtypes of weights and of values, and whether autocast is on."""
  seen: dict[str, set[Any]] = {"weights": set(), "values": set(), "autocast": set()}

  def look(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    seen["weights"] |= {parameter.dtype for parameter in layer.parameters()}
    seen["values"] |= {value.dtype for value in (*inputs, output)}
    seen["autocast"].add(torch.is_autocast_enabled("cpu"))

  kinds = (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.Conv2d, torch.nn.Linear)
  # The decoder takes no part.
  networks = (made._model, made._vae.encoder, made._vae.quant_conv)
  layers = [layer for n in networks for layer in n.modules() if isinstance(layer, kinds)]
  assert {type(layer) for layer in layers} == set(kinds)
  hooks = [layer.register_forward_hook(look) for layer in layers]
  made.run("max")
  for hook in hooks:
    hook.remove()
  return seen


def test_where_everything_is_narrow_there_is_no_autocast(module: Any) -> None:
  *_, spec = _specs(dtype="bfloat16", frozen_dtype="bfloat16")
  made = module.Contestant()
  made.prepare(**spec)
  narrow = {torch.bfloat16}
  assert _seen(made) == {"weights": narrow, "values": narrow, "autocast": {False}}
  # Where the denoiser is trained or nothing is narrow, weights are wide and autocast.
  made.prepare(**(spec | {"works": ["min", "max"]}))
  wide = _seen(made)
  assert wide["autocast"] == {True} and wide["weights"] == {torch.float32, torch.bfloat16}
  made.prepare(**(spec | {"variant": "as_written"}))
  wide = _seen(made)
  assert wide["autocast"] == {True} and wide["weights"] == {torch.float32}
  assert torch.float32 in wide["values"]
  # In float32 nothing is cast at all.
  made.prepare(**_specs()[-1])
  seen = _seen(made)
  assert seen["weights"] == seen["values"] == {torch.float32} and seen["autocast"] == {False}


def test_a_loss_without_autocast_is_the_same_loss(module: Any) -> None:
  losses = {}
  for changes in ({}, {"dtype": "bfloat16", "frozen_dtype": "bfloat16"}, {"dtype": "bfloat16"}):
    made = module.Contestant()
    made.prepare(**_specs(**changes)[-1])
    # The encoder's draws differ by dtype; its mean does not.
    encode = made._vae.encode
    made._vae.encode = lambda x, encode=encode: _Mean(encode(x).latent_dist.mean)
    torch.manual_seed(1)
    losses[str(changes)] = made._losses(made._images).detach()
  exact, *others = losses.values()
  assert all(torch.allclose(loss, exact, rtol=0.05) for loss in others), losses


class _Mean:
  """An encoder's answer whose samples are its mean."""

  def __init__(self, mean: torch.Tensor):
    self.latent_dist, self._mean = self, mean

  def sample(self) -> torch.Tensor:
    return self._mean


def test_several_steps_are_one_call(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  spec = next(s for s in _specs(steps=3) if s["works"] == ["round"])
  made = module.Contestant()
  made.prepare(**spec)
  taken = []
  for name in ("_min_step", "_max_step"):
    step = getattr(made, name)
    monkeypatch.setattr(made, name, lambda step=step, name=name: taken.append(name) or step())
  made.run("round")
  assert taken == ["_min_step", "_max_step"] * 3
  taken.clear()
  made.memory("round")
  assert taken == ["_min_step", "_max_step"]
  monkeypatch.setattr(made, "_max_step", lambda: torch.tensor(float("nan")))
  with pytest.raises(FloatingPointError, match="the loss is not finite"):
    made.run("round")


def test_a_gpu_is_waited_for_before_the_clock_is_read(module: Any, gpu: list[str]) -> None:
  spec = next(s for s in _specs() if s["works"] == ["max"] and s["variant"] == "channels_last")
  made = module.Contestant()
  made.prepare(**spec)
  assert torch.backends.cudnn.benchmark
  gpu.clear()
  made.run("max")
  # Once before and once after both steps.
  assert gpu == ["synchronize", "synchronize"]
  gpu.clear()
  assert made.memory("max")["device_mib"] == 3.0
  assert gpu == ["reset_peak_memory_stats", "max_memory_allocated"]
  # No gradient of another work is counted.
  assert all(parameter.grad is None for parameter in made._model.parameters())
  gpu.clear()
  module.matmul(8, ["float32"])
  assert gpu == ["synchronize"] * (1 + 8)
  assert module.info()["gpu"] == "NVIDIA Card" and "torch CUDA" in module.info()["libraries"]


@pytest.mark.parametrize(
  ("name", "products", "convolutions"),
  [
    ("", "highest", True),
    ("highest", "highest", False),
    ("tf32", "high", True),
    ("bf16", "medium", True),
  ],
)
def test_precisions_of_a_gpu(module: Any, gpu, name: str, products: str, convolutions) -> None:
  # From whatever was set before.
  torch.backends.cudnn.allow_tf32 = not convolutions
  torch.set_float32_matmul_precision("medium" if products != "medium" else "high")
  module._use_precision(name, module._GPU)
  assert torch.get_float32_matmul_precision() == products
  assert torch.backends.cudnn.allow_tf32 is convolutions


def test_a_cpu_has_one_precision(module: Any) -> None:
  before = torch.get_float32_matmul_precision()
  for name in ("", "highest", "tf32", "bf16"):
    module._use_precision(name, "cpu")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("index", [0, -1])
def test_networks_are_built_on_their_device(module: Any, index: int) -> None:
  # "meta" stands for any device but the CPU: it holds no numbers that could be read.
  spec = _specs()[index]
  chosen = module._Settings(
    **{name: spec[name] for name in ("vae", "image_size", "prompt_length") if name in spec}
  )
  made = module.Contestant()
  made._lean = False
  with torch.device("meta"):
    made._build(spec["unet"], spec["batch"], chosen)
  parts = [*made._model.parameters(), made._images, made._delta, *made._text]
  parts += [] if made._vae is None else [*made._vae.parameters()]
  assert {part.device.type for part in parts} == {"meta"}
