"""Tests mirror the tree: those of `udp_jax/ops/conv.py` are in `tests/ops/test_conv.py`."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("udp_jax", "experiments", "launch")

# Modules without a file of tests.
UNTESTED = {
  "*/__init__.py": "names what the package shows",
  "experiments/configs/*": "values: tests/experiments/test_configs.py builds every one of them",
  "udp_jax/studies/configs/*": "the same",
  "udp_jax/benchmark/torch_*.py": "runs in the peers' environment, where the tests are not",
  "experiments/eudp.py": "one line: its tests are those of `experiments._study`",
  "experiments/purify.py": "one line: its tests are those of `udp_jax.commands.purify`",
  "experiments/verify.py": "one line: its tests are those of `udp_jax.commands.verify`",
  "experiments/udp.py": "one line: its tests are those of `experiments._study`",
}
# Files of tests beside the mirror.
BESIDE = {
  "tests/*/test_contract.py": "what every method of the package promises, found by its name",
  "tests/*/test_*goldens.py": "values of published networks and samplers, whatever computes them",
  "tests/*/test_api.py": "names of a whole package",
  "tests/data/test_last_copies.py": "no module deletes a picture's last copy, whichever deletes",
  "tests/experiments/test_cases.py": "use cases from README.md, through several entry points",
  "tests/experiments/test_configs.py": "every config",
  "tests/experiments/test_interruptions.py": "signals, through several entry points",
  "tests/experiments/test_multiprocess.py": "several processes, through several entry points",
  "tests/experiments/test_places.py": "folders that several entry points share",
  "tests/experiments/test_process_ends.py": "ends of processes, through several entry points",
  "tests/experiments/test_protect_full_size.py": "a part of `protect` that compiles for long",
  "tests/experiments/test_readme.py": "commands of README.md and experiments/README.md",
  "tests/experiments/test_full_size.py": "models of full size, through `protect`",
  "tests/launch/test_scripts.py": "every script, by what they share",
  "tests/metrics/test_precision.py": "every metric that runs a model",
  "tests/models/test_flax_references.py": "two networks against flax's own layers",
  "tests/models/test_tiny_ldm.py": "the weights in the package",
  "tests/*/test_latent_models.py": "methods of a package on Stable Diffusion's layout",
}


def _matches(path: str, patterns: dict[str, str]) -> bool:
  return any(fnmatch(path, pattern) for pattern in patterns)


def _mirrored(module: Path) -> Path:
  """The file of tests of a module; both relative to the root."""
  folder = module.parent.relative_to("udp_jax") if module.parts[0] == "udp_jax" else module.parent
  return Path("tests", folder, f"test_{module.stem.removeprefix('_')}.py")


def _modules(root: Path) -> Iterator[Path]:
  for package in PACKAGES:
    yield from (path.relative_to(root) for path in sorted((root / package).rglob("*.py")))


def _scripts(root: Path) -> Iterator[Path]:
  yield from (path.relative_to(root) for path in sorted((root / "launch").glob("*.sh")))


def missing(root: Path) -> list[str]:
  """Files of tests that modules lack."""
  wanted = [
    _mirrored(module) for module in _modules(root) if not _matches(module.as_posix(), UNTESTED)
  ]
  return [path.as_posix() for path in wanted if not (root / path).is_file()]


def astray(root: Path) -> list[str]:
  """Files of tests in a package's folder that belong to no module or script of it."""
  known = {_mirrored(path) for path in (*_modules(root), *_scripts(root))}
  folders = {path.parent for path in known if path.parent != Path("tests")}
  found = (path.relative_to(root) for path in sorted((root / "tests").rglob("test_*.py")))
  return [
    path.as_posix()
    for path in found
    if path.parent in folders and path not in known and not _matches(path.as_posix(), BESIDE)
  ]


def test_every_module_has_its_tests() -> None:
  assert missing(ROOT) == []


def test_every_file_of_tests_has_its_module() -> None:
  assert astray(ROOT) == []


@pytest.mark.parametrize(
  ("patterns", "where"), [(UNTESTED, PACKAGES), (BESIDE, ("tests",))], ids=("untested", "beside")
)
def test_every_exception_is_needed(patterns: dict[str, str], where: tuple[str, ...]) -> None:
  paths = [
    path.relative_to(ROOT).as_posix() for top in where for path in (ROOT / top).rglob("*.py")
  ]
  assert [p for p in patterns if not any(fnmatch(path, p) for path in paths)] == []


def test_what_is_missing_or_astray_is_seen(tmp_path: Path) -> None:
  for name in (
    "udp_jax/errors.py", "udp_jax/ops/image.py", "udp_jax/ops/__init__.py", "launch/pod.sh",
    "udp_jax/benchmark/torch_one.py", "experiments/_study.py", "experiments/configs/demo.py",
    "tests/test_errors.py", "tests/test_of_several.py", "tests/ops/test_picture.py",
    "tests/ops/test_contract.py", "tests/launch/test_pod.py", "tests/house/test_counts.py",
  ):  # fmt: skip
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert missing(tmp_path) == ["tests/ops/test_image.py", "tests/experiments/test_study.py"]
  assert astray(tmp_path) == ["tests/ops/test_picture.py"]
