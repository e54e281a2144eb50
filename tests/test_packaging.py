"""What is installed: the pins of requirements.txt for each Python, and the wheel."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CARD = {
  "jax",
  "flax",
  "optax",
  "diffusers",
  "orbax-checkpoint",
  "numpy",
  "absl-py",
  "tensorflow-datasets",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(path: str, python: str) -> dict[str, str]:
  """Versions by name that a file of requirements pins for one version of Python, on Linux."""
  environment = {"python_version": python, "python_full_version": f"{python}.0"}
  found: dict[str, str] = {}
  for line in (ROOT / path).read_text().splitlines():
    if not line.strip() or line.startswith("#"):
      continue
    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate(environment):
      continue
    name = canonicalize_name(requirement.name)
    (pin,) = requirement.specifier
    assert pin.operator == "==" and "*" not in pin.version, f"{line} pins no version"
    assert name not in found, f"{name} is pinned twice for Python {python}"
    found[name] = pin.version
  return found


@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_pin_what_the_package_asks_for(python: str) -> None:
  pinned = pins("requirements.txt", python)
  assert pinned.keys() >= CARD
  assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
  extras = PROJECT["optional-dependencies"]
  asked = [PROJECT["dependencies"], *(extras[name] for name in ("eval", "tfds", "test", "lint"))]
  for requirement in map(Requirement, sum(asked, [])):
    version = pinned[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), f"{version} is not {requirement}"
  theirs = pins("tests/parity/requirements.txt", python)
  # diffusers and transformers: without Flax code there, the last releases with it here.
  for name in (theirs.keys() & pinned.keys()) - {"diffusers", "transformers"}:
    assert theirs[name] == pinned[name], name


def test_lower_bounds_are_versions_that_are_tested() -> None:
  pinned = pins("requirements.txt", PYTHONS[0]) | pins("tests/page/requirements.txt", PYTHONS[0])
  extras = PROJECT["optional-dependencies"]
  names = ("eval", "tfds", "test", "lint", "page")
  asked = [PROJECT["dependencies"], *(extras[name] for name in names)]
  for requirement in map(Requirement, sum(asked, [])):
    for bound in requirement.specifier:
      if bound.operator == "<":  # A next major version, which no one has tested.
        continue
      assert bound.version == pinned[canonicalize_name(requirement.name)], requirement


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_announcements_of_what_will_go_are_errors(category: type[Warning]) -> None:
  with pytest.raises(category):
    warnings.warn("this name will go", category, stacklevel=1)


def test_a_deprecated_name_of_jax_is_an_error() -> None:
  """JAX announces by a module's `__getattr__`, and by a function of its own; both count."""
  from jax._src import deprecations

  module = types.ModuleType("jax.somewhere")
  announced = {"old": ("old will go", 1)}
  module.__getattr__ = deprecations.deprecation_getattr("jax.somewhere", announced)  # type: ignore
  with pytest.raises(DeprecationWarning, match="old will go"):
    assert module.old
  deprecations.register("udp-jax-test")
  with pytest.raises(DeprecationWarning, match="other will go"):
    deprecations.warn("udp-jax-test", "other will go", stacklevel=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder with the source distribution, and the wheel built from that, as `build` does it."""
  pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77: make test has it")
  folder = tmp_path_factory.mktemp("built")
  tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
  if tracked.returncode != 0:
    pytest.skip("git does not say which files are the project's: not a checkout")
  source = folder / "source"
  for name in filter(None, tracked.stdout.split("\0")):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).symlink_to(ROOT / name)

  def build(kind: str, source: Path) -> Path:
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made

  with tarfile.open(build("sdist", source)) as archive:
    archive.extractall(folder / "unpacked", filter="data")
  build("wheel", *(folder / "unpacked").iterdir())
  return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
  """The wheel as it is installed: a folder for `sys.path`."""
  folder = built / "installed"
  with zipfile.ZipFile(*built.glob("*.whl")) as archive:
    archive.extractall(folder)
  return folder


def _files(folder: Path, place: str) -> set[str]:
  found = (path for path in (folder / place).rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_source_and_wheel_hold_every_file(built: Path, wheel: Path) -> None:
  (unpacked,) = (built / "unpacked").iterdir()
  source = built / "source"
  for place in ("udp_jax", "experiments", "launch", "tests"):
    assert _files(unpacked, place) == _files(source, place)
  assert (unpacked / "Makefile").is_file() and (unpacked / "requirements.txt").is_file()
  assert {path.name for path in wheel.iterdir()} == {
    "udp_jax",
    f"udp_jax-{PROJECT['version']}.dist-info",
  }
  assert _files(wheel, "udp_jax") == _files(source, "udp_jax")


# Before the code of a test: the wheel comes first, and only packages of the given names can be
# imported; others are as if they were not installed.
_ALONE = """\
import importlib.metadata, json, re, sys
sys.path.insert(0, sys.argv[1])
allowed = set(json.loads(sys.argv[2]))
canonical = lambda name: re.sub("[-_.]+", "-", name).lower()
owners = {
  module: {canonical(name) for name in names}
  for module, names in importlib.metadata.packages_distributions().items()
}

class OnlyAllowed:
  def find_spec(self, name, path=None, target=None):
    top = name.partition(".")[0]
    if top != "udp_jax" and top in owners and not owners[top] & allowed:
      raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, OnlyAllowed())
import udp_jax
assert udp_jax.__file__.startswith(sys.argv[1]), udp_jax.__file__
"""


@functools.cache
def _needed(requirements: tuple[str, ...]) -> frozenset[str]:
  """The names of packages that these requirements bring with them on this Python."""
  found: set[str] = set()
  waiting = [(Requirement(text), "") for text in requirements]
  while waiting:
    requirement, extra = waiting.pop()
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
      continue
    for part in ("", *requirement.extras):
      key = f"{canonicalize_name(requirement.name)}[{part}]"
      if key not in found:
        found.add(key)
        theirs = importlib.metadata.requires(requirement.name) or []
        waiting += [(Requirement(text), part) for text in theirs]
  return frozenset(key.partition("[")[0] for key in found)


def run_alone(wheel: Path, requirements: list[str], code: str) -> str:
  """Runs code in a process that has the wheel and what the requirements bring, nothing else."""
  needed = json.dumps(sorted(_needed(tuple(requirements))))
  done = subprocess.run(
    [sys.executable, "-c", _ALONE + code, str(wheel), needed],
    cwd=wheel.parent,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_ops_of_the_wheel_need_jax_and_numpy_only(wheel: Path) -> None:
  names = sorted(path.stem for path in (wheel / "udp_jax" / "ops").glob("*.py"))
  code = "import importlib\n" + "".join(
    f"importlib.import_module('udp_jax.ops.{name}')\n" for name in names if name != "__init__"
  )
  code += """
from udp_jax.ops import schedules
print(float(schedules.linear(10).alphas_cumprod[0]))
try:
  import flax
except ModuleNotFoundError:
  print("flax is hidden")
"""
  first, hidden = run_alone(wheel, ["jax", "numpy"], code).splitlines()
  assert 0.0 < float(first) < 1.0 and hidden == "flax is hidden"


@pytest.mark.slow
def test_the_wheel_s_own_requirements_are_enough(wheel: Path) -> None:
  """All methods are there, the packaged model is read, and pictures go through a purifier."""
  code = """
import jax, numpy as np
from udp_jax import purifiers, registry
from udp_jax.models import pipeline
for kind in ("protections", "purifiers", "threats"):
  names = registry.available(f"udp_jax.{kind}")
  assert all(callable(registry.constructor(f"udp_jax.{kind}", name)) for name in names)
  print(*names)
tiny = pipeline.load_pipeline("tiny_ldm")
assert str(pipeline.resolve("tiny_ldm")).startswith(sys.argv[1])
purifier = purifiers.build("jpeg", tiny.model, {"quality": 50})
key = jax.random.key(0)
pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
purified = purifiers.purify(purifier, purifier.init(key), key, pictures, [0, 1])
print(purified.shape, purified.dtype, bool((purified != pictures).any()))
for hidden in ("sklearn", "skimage", "matplotlib", "jinja2", "diffusers", "transformers"):
  assert not any(name.partition(".")[0] == hidden for name in sys.modules), hidden
"""
  lines = run_alone(wheel, PROJECT["dependencies"], code).splitlines()
  assert "eudp" in lines[0] and "impress" in lines[1] and "lora" in lines[2]
  assert lines[3] == "(2, 16, 16, 3) uint8 True"


@pytest.mark.slow
def test_the_eval_extra_is_enough_for_reports(wheel: Path) -> None:
  code = """
from udp_jax.metrics import visibility
from udp_jax.report import html, matrix
from pathlib import Path
import jinja2
folder = Path(html.__file__).parent
environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder))
for template in folder.glob("*.j2"):
  environment.get_template(template.name)
  print(template.name)
"""
  extras = PROJECT["optional-dependencies"]["eval"]
  lines = run_alone(wheel, PROJECT["dependencies"] + extras, code).splitlines()
  assert {"report.html.j2", "matrix.html.j2"} <= set(lines)


@pytest.fixture(scope="module")
def programs(built: Path) -> Path:
  """Programs of a virtual environment with the wheel and this one's packages, but no checkout."""
  folder = built / "environment"
  subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
  (packages,) = folder.glob("lib/python*/site-packages")
  # Without what its `.pth` files would add, such as this checkout.
  theirs = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
  (packages / "theirs.pth").write_text("\n".join(sorted(theirs)))
  python = str(folder / "bin" / "python")
  (wheel,) = built.glob("*.whl")
  install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
  subprocess.run([*install, str(wheel)], check=True)
  return folder / "bin"


@pytest.mark.slow
def test_the_wheel_brings_its_command(
  programs: Path, tmp_path: Path, process_environment: dict[str, str]
) -> None:
  (tmp_path / "photos").mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
  environment = {n: v for n, v in process_environment.items() if n != "PYTHONPATH"}

  def udp_jax(*words: str) -> str:
    command = [str(programs / "udp-jax"), *words]
    done = subprocess.run(
      command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  assert udp_jax("--version") == f"udp-jax {PROJECT['version']}\n"
  assert "udp-jax protect FOLDER" in udp_jax("--help")
  words = ("--model=tiny_ldm", "--strength=gentle", "--config=folder:smoke")
  said = udp_jax("protect", "photos", *words)
  assert "1 pictures protected in" in said and "against tiny_ldm, the small latent" in said
  assert "OK: 1 files keep the budget (budget 4 levels" in udp_jax("verify", "photos-protected")
  assert "pictures purified by jpeg" in udp_jax("purify", "photos-protected", "--config=jpeg75")
  assert udp_jax("models").startswith("tiny_ldm: a latent diffusion model")
  code = "import udp_jax; print(udp_jax.__file__)"
  place = subprocess.run(
    [str(programs / "python"), "-c", code], cwd=tmp_path, capture_output=True, text=True
  )
  assert place.stdout.startswith(str(programs.parent)), place
