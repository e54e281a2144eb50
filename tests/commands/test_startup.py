"""What a command's process sets for jax, and that jax takes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from udp_jax.commands import startup

ROOT = Path(__file__).resolve().parents[2]
_EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("", f"{_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir=WORK/autotune"),
    ("--a=1  --b", f"--a=1  --b {_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir=WORK/autotune"),
    (
      "--xla_gpu_per_fusion_autotune_cache_dir=/mine",
      f"--xla_gpu_per_fusion_autotune_cache_dir=/mine {_EXCLUDE}",
    ),
    (
      "--xla_gpu_exclude_nondeterministic_ops=false --xla_gpu_per_fusion_autotune_cache_dir=/mine",
      "--xla_gpu_exclude_nondeterministic_ops=false --xla_gpu_per_fusion_autotune_cache_dir=/mine",
    ),
  ],
)
def test_deterministic_adds_to_the_flags_that_are_given(
  given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("XLA_FLAGS", given)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", raising=False)
  monkeypatch.chdir(tmp_path)
  startup.repeat_exactly("runs/one")  # A folder of the current one.
  assert os.environ["XLA_FLAGS"] == expected.replace("WORK", str(tmp_path / "runs" / "one"))
  assert os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"
  assert not (tmp_path / "runs").exists()


def test_deterministic_without_a_work_folder_keeps_what_jax_is_told(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "all")
  startup.repeat_exactly(None)
  assert os.environ["XLA_FLAGS"].endswith(f"_autotune_cache_dir={tmp_path}/autotune")
  assert os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "all"


_STARTS = """
import os, sys
from experiments import _cli
def main(argv):
  assert "jax" not in sys.modules
  import jax
  assert float(jax.jit(lambda x: x + 1)(1.0)) == 2
  print(os.environ["XLA_FLAGS"], jax.config.jax_persistent_cache_enable_xla_caches)
_cli.workdir_flag()
_cli.run(main, several=False)
"""


@pytest.mark.parametrize("deterministic", [True, False])
def test_jax_starts_with_every_flag_that_is_set(
  deterministic: bool, tmp_path: Path, process_environment: dict[str, str]
) -> None:
  """XLA aborts at a flag that it does not know, or at half of a path with a blank."""
  words = ["--deterministic"] if deterministic else ["--nodeterministic"]
  command = [sys.executable, "-c", _STARTS, *words, f"--workdir={tmp_path / 'a run'}"]
  environment = process_environment | {"PYTHONPATH": str(ROOT)}
  environment.pop("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", None)
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  expected = f'{_EXCLUDE} --xla_gpu_per_fusion_autotune_cache_dir="{tmp_path}/a run/autotune"'
  assert (expected in done.stdout) == deterministic
  assert done.stdout.endswith(" none\n") == deterministic
  assert not list(tmp_path.iterdir())  # On a CPU nothing is timed.
