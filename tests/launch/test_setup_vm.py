"""setup_vm.sh on a fresh host, where a stand-in is the interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

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
  done = stand_in.launch("setup_vm.sh", *words)
  assert done.returncode == 0, done.stderr
  calls = stand_in.calls()
  install = ["python", "-m", "pip", "install", "--quiet"]
  requirements = str(folder / "requirements.txt")
  assert [*install, "--requirement", requirements, "jax[tpu]"] in calls
  assert [*install, "--no-deps", "--editable", str(folder)] in calls

  assert stand_in.launch("setup_vm.sh", *words).returncode == 0
  assert stand_in.calls() == calls  # nothing changed, nothing done
  assert stand_in.launch("setup_vm.sh", *words, "--accelerator=cuda13").returncode == 0
  assert [*install, "--requirement", requirements, "jax[cuda13]"] in stand_in.calls()


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
