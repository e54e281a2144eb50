"""setup_vm.sh on a fresh host, where a stand-in is the interpreter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launch import chips
from tests.launch.conftest import StandIn

PYTHON = """\
if words[:2] == ["-m", "venv"]:
  import shutil
  os.makedirs(words[2] + "/bin", exist_ok=True)
  shutil.copy(sys.argv[0], words[2] + "/bin/python")
"""


def repository(folder: Path) -> Path:
  """A repository that setup_vm.sh accepts."""
  folder.mkdir()
  (folder / "requirements.txt").write_text("numpy==1\njax==0.1.2  # pinned\n")
  (folder / "pyproject.toml").write_text("")
  return folder


def test_setup_installs_once(stand_in: StandIn):
  python = stand_in.add("python-stand-in", PYTHON)
  folder = repository(stand_in.folder / "a b")
  words = (f"--dir={folder}", f"--python={python}")
  tpu = (*words, "--accelerator=tpu")
  done = stand_in.launch("setup_vm.sh", *tpu)
  assert done.returncode == 0, done.stderr
  calls = stand_in.calls()
  install = ["python", "-m", "pip", "install", "--quiet"]
  requirements = str(folder / "requirements.txt")
  assert [*install, "--requirement", requirements, "jax[tpu]"] in calls
  assert [*install, "--no-deps", "--editable", str(folder)] in calls

  assert stand_in.launch("setup_vm.sh", *tpu).returncode == 0
  assert stand_in.calls() == calls  # nothing changed, nothing done
  assert stand_in.launch("setup_vm.sh", *words, "--accelerator=cuda13").returncode == 0
  assert [*install, "--requirement", requirements, "jax[cuda13]"] in stand_in.calls()


def nvidia_smi(stand_in: StandIn, *gpus: str, code: int = 0) -> None:
  """A host whose nvidia-smi answers so."""
  query = ["--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
  stand_in.add(
    "nvidia-smi", f"assert words == {query}\nprint({chr(10).join(gpus)!r})\nsys.exit({code})"
  )


@pytest.mark.parametrize(
  "gpus, cuda",
  [
    (["580.65.06, 8.0"], "cuda13"),
    (["580.65.06, 7.5"], "cuda13"),
    (["590.1, 10.0", "590.1, 12.0"], "cuda13"),
    (["579.99.01, 9.0"], "cuda12"),
    (["525.60.13, 8.9"], "cuda12"),
    # CUDA 13 has no code for Volta and older, which driver 580 still runs.
    (["580.65.06, 7.0"], "cuda12"),
    (["580.65.06, 6.1", "580.65.06, 8.6"], "cuda12"),
    (["580.65.06, 8.6", "580.65.06, 6.1"], "cuda12"),
  ],
)
def test_cuda_by_driver_and_gpu(stand_in: StandIn, gpus, cuda):
  nvidia_smi(stand_in, *gpus)
  folder = repository(stand_in.folder / "a")
  for words in ([], ["--accelerator=cuda"]):
    done = stand_in.launch("setup_vm.sh", f"--dir={folder}", "--python=p", "--dry_run", *words)
    assert done.returncode == 0, done.stderr
    assert f"jax[{cuda}]" in done.stdout
    assert f"{cuda}: driver and compute capability" in done.stderr
    assert done.stderr.endswith(f": {'; '.join(gpus)}\n")


@pytest.mark.parametrize("forced", ["tpu", "cpu", "cuda12", "cuda13"])
def test_what_is_given_is_not_asked_for(stand_in: StandIn, forced):
  nvidia_smi(stand_in, "470.1, 8.0")
  folder = repository(stand_in.folder / "a")
  words = (f"--dir={folder}", "--python=p", "--dry_run", f"--accelerator={forced}")
  done = stand_in.launch("setup_vm.sh", *words)
  assert done.returncode == 0, done.stderr
  assert ("jax" if forced == "cpu" else f"jax[{forced}]") in done.stdout
  assert not stand_in.calls()


def test_drivers_that_will_not_do(stand_in: StandIn):
  folder = repository(stand_in.folder / "a")

  def refused(*words: str) -> str:
    done = stand_in.launch("setup_vm.sh", f"--dir={folder}", "--python=p", "--dry_run", *words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr

  nvidia_smi(stand_in, "470.82.01, 8.0")
  assert "NVIDIA driver 470.82.01 is too old: CUDA 12 needs 525, 13 580" in refused()
  nvidia_smi(stand_in, "NVIDIA-SMI has failed because it could not reach the driver", code=9)
  assert "nvidia-smi finds no driver (NVIDIA-SMI has failed" in refused()
  nvidia_smi(stand_in, "580.65.06, [N/A]")
  assert "'580.65.06, [N/A]' is no driver and compute capability" in refused()
  nvidia_smi(stand_in, "No devices were found")
  assert "is no driver and compute capability" in refused()


def test_a_host_without_nvidia_smi(stand_in: StandIn):
  # The machine of this test may have one.
  programs = stand_in.folder / "few"
  programs.mkdir()
  for name in ("bash", "dirname", "sed", "cat", "grep"):
    (programs / name).symlink_to(shutil.which(name) or name)
  folder = repository(stand_in.folder / "a")
  words = ("setup_vm.sh", f"--dir={folder}", "--python=p", "--dry_run")
  options = {"env": stand_in.env | {"PATH": str(programs)}}
  done = stand_in.launch(*words, **options)
  assert done.returncode == 0 and "jax[tpu]" in done.stdout
  done = stand_in.launch(*words, "--accelerator=cuda", **options)
  assert done.returncode == 2
  assert "asks nvidia-smi, not on PATH: give --accelerator=cuda12 or cuda13" in done.stderr


def test_the_drivers_are_those_of_the_compiler_s_table(stand_in: StandIn):
  said = stand_in.launch("setup_vm.sh", "--help").stdout
  for cuda, plugin in chips.PLUGINS.items():
    assert f"CUDA {cuda}" in said and f"driver {plugin.driver}" in said


def test_a_setup_that_failed_is_done_again(stand_in: StandIn):
  failing = PYTHON + 'sys.exit("--requirement" in words and not os.path.exists(here + "mended"))\n'
  python = stand_in.add("python-stand-in", failing)
  words = (f"--dir={repository(stand_in.folder / 'a')}", f"--python={python}")
  assert stand_in.launch("setup_vm.sh", *words).returncode == 1
  (stand_in.folder / "mended").touch()
  before = len(stand_in.calls())
  assert stand_in.launch("setup_vm.sh", *words).returncode == 0
  assert len(stand_in.calls()) > before + 3


def test_setup_clones_and_follows_a_repository(stand_in: StandIn):
  python = stand_in.add("python-stand-in", PYTHON)
  source = repository(stand_in.folder / "source")

  def git(*words: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, "-C", str(source), *words], check=True, capture_output=True)

  def setup(*words: str) -> None:
    common = (f"--repo={source}", f"--python={python}", "--dir=here")
    done = stand_in.launch("setup_vm.sh", *common, *words)
    assert done.returncode == 0, done.stderr

  git("init")
  git("add", ".")
  git("commit", "-m", "1")
  git("tag", "v1")
  setup()
  (source / "new").touch()
  git("add", ".")
  git("commit", "-m", "2")
  setup()
  assert (stand_in.folder / "here" / "new").exists()
  setup("--ref=v1")
  assert not (stand_in.folder / "here" / "new").exists()


def test_setup_refuses_a_folder_that_is_no_repository(stand_in: StandIn):
  done = stand_in.launch("setup_vm.sh", f"--dir={stand_in.home}")
  assert done.returncode == 2
  assert "no requirements.txt" in done.stderr
  (stand_in.home / "requirements.txt").write_text("numpy==1\njaxlib==2\n")
  done = stand_in.launch("setup_vm.sh", f"--dir={stand_in.home}")
  assert done.returncode == 2
  assert "requirements.txt pins no jax==VERSION" in done.stderr
  done = stand_in.launch("setup_vm.sh", "--accelerator=abacus")
  assert done.returncode == 2


@pytest.mark.parametrize(
  "version, fits", [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), True)]
)
def test_which_interpreters_fit(stand_in: StandIn, version, fits):
  """The stand-in runs the script's own question, as an interpreter of another version."""
  asked = f"if words[0] == '-c' and 'version_info' in words[1]:\n  sys.version_info = {version}\n"
  python = stand_in.add("python-stand-in", asked + "  exec(words[1])\n" + PYTHON)
  folder = repository(stand_in.folder / "a")
  done = stand_in.launch("setup_vm.sh", f"--dir={folder}", f"--python={python}")
  assert (done.returncode == 0) == fits
  assert fits or "is not Python 3.11 or newer with venv" in done.stderr
