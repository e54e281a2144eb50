"""`experiments.protect`, `.train`, `.sample` and `.evaluate` on folders, good and bad ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from udp_jax import protections
from udp_jax.data.images import read_image
from udp_jax.data.verify import verify
from udp_jax.errors import DivergedError
from udp_jax.models import factory
from udp_jax.protections import constraints
from udp_jax.runtime.metrics_log import read_metrics


def _photograph(seed: int, height: int, width: int) -> np.ndarray:
  y, x, c = np.mgrid[:height, :width, :3]
  values = 128 + 90 * np.sin(0.2 * (seed % 5 + 1) * x + 0.13 * y + seed + c)
  return np.clip(values, 0, 255).astype(np.uint8)


def _make_pictures(folder: Path) -> Path:
  """Seven pictures of odd sizes in nested folders, and one with transparency: eight."""
  folder.mkdir()
  for i in range(7):
    place = folder / ("a" if i % 2 else "b/c")
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_photograph(i, 17 + 3 * i, 41 - i)).save(
      place / f"{i:02d}.{('png', 'jpg', 'bmp')[i % 3]}"
    )
  alpha = np.zeros((32, 32, 1), np.uint8)
  alpha[8:, :, :] = 200
  Image.fromarray(np.concatenate([_photograph(99, 32, 32), alpha], -1)).save(folder / "glass.png")
  return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return _make_pictures(tmp_path_factory.mktemp("pictures") / "mine")


def _smoke(folder: Path, output: Path, *words: str) -> list[str]:
  return ["--config=demo_pixels:smoke", f"--input={folder}", f"--output={output}", *words]


def _error(done, code: int) -> str:
  """The one line that a failed run says, after progress bars and messages."""
  assert done.returncode == code, done.stderr
  assert "Traceback" not in done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1, done.stderr
  return lines[0]


@pytest.fixture(scope="module")
def protected(pictures: Path, tmp_path_factory: pytest.TempPathFactory, entry_point):
  """A folder with one broken file among eight good ones, protected by noise: (done, output)."""
  folder = tmp_path_factory.mktemp("protect")
  source = _make_pictures(folder / "source")
  (source / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
  done = entry_point("protect", *_smoke(source, folder / "out", "--method=sign_noise"))
  return done, source, folder / "out"


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--method=udp", "--clean_set=elsewhere"], "--clean_set is for fsmg and aspl: udp trains on"),
    (["--method=aspl", "--clean_set=INPUT", "--model=tiny_ldm"], "the same folder as --input"),
  ],
)
def test_clean_sets_that_cannot_be_used(
  words: list[str], message: str, pictures: Path, tmp_path: Path, entry_point
) -> None:
  given = [word.replace("INPUT", f"folder:{pictures}") for word in words]
  done = entry_point("protect", *_smoke(pictures, tmp_path / "out", *given))
  assert message in _error(done, 2)


def test_bad_file_is_skipped_and_the_others_are_protected(protected, entry_point) -> None:
  done, _, output = protected
  assert done.returncode == 0, done.stderr
  assert f"8 pictures protected in {output} (at most" in done.stdout
  assert "of 16 levels of change), 1 skipped" in done.stdout
  assert re.search(r"^skipped: a/broken.jpg: \S+", done.stdout, re.MULTILINE)
  names = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
  assert len(names) == 8 and {"glass.png", "a/01.png", "b/c/00.png"} <= names
  manifest = json.loads((output / "manifest.json").read_text())
  assert [file for file, _ in manifest["origin"]["skipped"]] == ["a/broken.jpg"]
  clean = Path(f"{output}.work") / "clean"
  verified = entry_point("verify", f"--clean={clean}", f"--protected={output}", "--radius_255=16")
  assert verified.returncode == 0, verified.stdout


def test_pictures_keep_their_sizes(protected) -> None:
  _, source, output = protected
  for i in range(7):
    place = "a" if i % 2 else "b/c"
    original = read_image(next((source / place).glob(f"{i:02d}.*"))).pixels
    saved = read_image(output / place / f"{i:02d}.png").pixels
    assert saved.shape == original.shape == (17 + 3 * i, 41 - i, 3)
    assert (saved != original).mean() > 0.5


@pytest.mark.slow
def test_by_default_pictures_are_protected_by_eudp(
  pictures: Path, tmp_path: Path, entry_point
) -> None:
  """Of any size; tests/stages/test_protect_pictures.py has the same without a network."""
  done = entry_point("protect", *_smoke(pictures, tmp_path / "out"))
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f"8 pictures protected in {tmp_path / 'out'} (at most ")
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert manifest["method"] == "eudp" and 0 < manifest["worst"]["max_abs_255"] <= 16
  report = verify(pictures, tmp_path / "out", 16)
  assert report.ok and report.checked == 8


@pytest.fixture(scope="module")
def resized(pictures: Path, tmp_path_factory: pytest.TempPathFactory, entry_point):
  """The pictures cropped, resized and protected: (done, output).

  By noise, which is quick; the smoke run of `experiments.eudp` protects such pictures by methods.
  """
  output = tmp_path_factory.mktemp("resized") / "out"
  words = _smoke(pictures, output, "--resize", "--method=random_noise")
  done = entry_point("protect", *words)
  assert done.returncode == 0, done.stderr
  return done, output


def test_resizing_crops_and_keeps_transparency(resized) -> None:
  done, output = resized
  assert done.stdout.startswith(f"8 pictures protected in {output} (at most")
  assert all(read_image(path).pixels.shape == (16, 16, 3) for path in output.rglob("*.png"))
  clean = np.array(Image.open(Path(f"{output}.work") / "clean" / "glass.png"))
  after = np.array(Image.open(output / "glass.png"))
  assert after.shape == (16, 16, 4)
  np.testing.assert_array_equal(after[..., 3], clean[..., 3])
  assert after[..., 3].min() == 0 and after[..., 3].max() == 200
  assert (after[..., :3] != clean[..., :3]).mean() > 0.5


def test_finished_output_is_not_touched_unless_told(protected, entry_point) -> None:
  _, source, output = protected
  before = {path: path.read_bytes() for path in output.rglob("*.png")}
  done = entry_point("protect", *_smoke(source, output, "--method=sign_noise"))
  assert done.returncode == 0 and "nothing to do, 8 pictures are finished" in done.stderr
  words = _smoke(source, output, "--method=random_noise")
  message = _error(entry_point("protect", *words), 4)
  assert str(output) in message and "finished output already" in message
  assert {path: path.read_bytes() for path in output.rglob("*.png")} == before
  done = entry_point("protect", *words, "--overwrite")
  assert done.returncode == 0, done.stderr
  after = {path: path.read_bytes() for path in output.rglob("*.png")}
  assert after.keys() == before.keys()
  assert all(after[path] != before[path] for path in before)
  assert json.loads((output / "manifest.json").read_text())["method"] == "random_noise"


def test_strict_makes_a_bad_file_fatal(protected, tmp_path: Path, entry_point) -> None:
  _, source, _ = protected
  message = _error(entry_point("protect", *_smoke(source, tmp_path / "out", "--strict")), 3)
  assert "broken.jpg" in message
  assert list(tmp_path.iterdir()) == []


def test_unusable_sources_leave_nothing_behind(tmp_path: Path, entry_point) -> None:
  empty, broken = tmp_path / "empty", tmp_path / "broken"
  empty.mkdir()
  broken.mkdir()
  (broken / "zero.png").touch()
  (broken / "text.jpg").write_text("hello")
  archive = tmp_path / "cifar-10-binary.tar.gz"
  with tarfile.open(archive, "w:gz") as tar:
    tar.add(broken / "text.jpg", "cifar-10-batches-bin/data_batch_1.bin")
  before = sorted(tmp_path.rglob("*"))
  for source, code, words in (
    (empty, 2, "empty"),
    (broken, 3, "broken"),
    (f"cifar10:{tmp_path}/missing.tar.gz", 2, "missing.tar.gz does not exist"),
    (f"cifar10:{archive}", 3, "bytes instead of 170052171"),
  ):
    message = _error(entry_point("protect", *_smoke(source, tmp_path / "out")), code)
    assert re.search(words, message), message
    assert sorted(tmp_path.rglob("*")) == before


def test_foreign_files_are_never_replaced(pictures: Path, tmp_path: Path, entry_point) -> None:
  out = tmp_path / "out"
  out.mkdir()
  (out / "thesis.txt").write_text("mine")
  for words in ([], ["--overwrite", "--resize"]):
    message = _error(entry_point("protect", *_smoke(pictures, out, *words)), 4)
    assert "files that are not ours (thesis.txt" in message
  assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]
  (tmp_path / "file").touch()
  message = _error(entry_point("protect", *_smoke(pictures, tmp_path / "file")), 4)
  assert "it is a file" in message


def test_unknown_method_and_missing_model(pictures: Path, tmp_path: Path, entry_point) -> None:
  words = _smoke(pictures, tmp_path / "out")
  message = _error(entry_point("protect", *words, "--method=nope"), 2)
  assert "unknown method or row 'nope'; known: ace, " in message
  message = _error(entry_point("protect", *words, "--method=advdm"), 2)
  assert "advdm attacks a trained model: give --model=FOLDER" in message
  message = _error(entry_point("protect", *words, "--method=advdm", "--model=/nope"), 2)
  assert "/nope" in message
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resize", [True, False])
def test_a_delta_that_is_not_finite(
  resize: bool, pictures: Path, tmp_path: Path, load_entry_point, monkeypatch: pytest.MonkeyPatch
) -> None:
  """In this process, with a method of a few operations in place of one that trains a network."""
  nan = optax.scale_by_schedule(lambda step: jnp.where(step < 2, 0.01, jnp.nan))
  inner = protections.pgd(_to_grey, constraints.linf(16 / 255), nan)
  made = protections.over_batches(inner)._replace(needs_params=False)
  program = load_entry_point("experiments.protect")
  monkeypatch.setattr(protections, "build", lambda name, model, options: made)
  rest = program.parse(*_smoke(pictures, tmp_path / "out", *["--resize"] * resize, "--noprogress"))
  with pytest.raises(
    DivergedError, match="^protect eudp: delta_rms_255 is nan at round 3 of 6"
  ) as e:
    program.main(rest)
  assert e.value.exit_code == 5
  assert not (tmp_path / "out").exists()


def _to_grey(params, images, cond, keys):
  """An objective: pulls every pixel to medium grey."""
  del params, cond, keys
  return jnp.square(images - 0.5).mean((1, 2, 3)), {}


@pytest.mark.slow
def test_loss_that_is_not_finite(pictures: Path, tmp_path: Path, entry_point) -> None:
  words = _smoke(pictures, tmp_path / "out", "--config.protections.eudp.learning_rate=1e30")
  message = _error(entry_point("protect", *words), 5)
  assert re.search(r"protect eudp: \w+ is (nan|inf) at round \d of 6; lower the", message)
  assert not (tmp_path / "out").exists()


_LIMITED = """import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("limit", "where", "resize"),
  [(0, "config.json", False), (9000, "checkpoints", True)],
)
def test_no_room_for_files(
  limit: int,
  where: str,
  resize: bool,
  pictures: Path,
  tmp_path: Path,
  process_environment,
  entry_point,
) -> None:
  """A limit on the size of files, in bytes, stands in for a full disk: both refuse the write."""
  words = _smoke(pictures, tmp_path / "out", "--method=random_noise")
  words += ["--resize"] * resize
  done = subprocess.run(
    [sys.executable, "-c", _LIMITED, str(limit), "experiments.protect", *words],
    cwd=Path(__file__).resolve().parents[2],
    # Nothing of this is the compilation cache's business.
    env={**process_environment, "JAX_ENABLE_COMPILATION_CACHE": "0"},
    capture_output=True,
    text=True,
    check=False,
  )
  message = _error(done, 4)
  assert "cannot write" in message and where in message and "File too large" in message
  assert not (tmp_path / "out").exists()
  assert not list(tmp_path.rglob("*.udp-tmp"))
  # With room again, the same command goes on.
  done = entry_point("protect", *words)
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "out").rglob("*.png"))) == 8


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_place(pictures: Path, tmp_path: Path, entry_point) -> None:
  tmp_path.chmod(0o555)
  message = _error(entry_point("protect", *_smoke(pictures, tmp_path / "out")), 4)
  assert "permission denied" in message


@pytest.fixture(scope="module")
def model(pictures: Path, tmp_path_factory: pytest.TempPathFactory, entry_point) -> Path:
  """A model folder made by `experiments.train`, called twice."""
  workdir = tmp_path_factory.mktemp("train") / "run"
  words = ["--config=demo:smoke", f"--input={pictures}", f"--workdir={workdir}"]
  for _ in range(2):
    done = entry_point("train", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"model: {workdir / 'model'} (6 steps, 8 pictures)\n"
  assert "train:" not in done.stderr  # The second call had nothing to do.
  return workdir / "model"


@pytest.mark.slow
def test_train_makes_a_model_folder(model: Path) -> None:
  assert (model / "model_index.json").exists()
  assert factory.load(model)[0].shape == (16, 16, 3)
  records = read_metrics(model.parent / "metrics.jsonl")
  assert [record["position"] for record in records] == [2, 4, 6]
  assert all(record["images_per_s"] > 0 for record in records)


@pytest.mark.slow
def test_sample_then_evaluate(model: Path, resized, tmp_path: Path, entry_point) -> None:
  words = [f"--model={model}", "--num_samples=16", "--sample_steps=3", "--per_device_batch_size=8"]
  done = entry_point("sample", *words, f"--output={tmp_path / 'first'}")
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"16 samples: {tmp_path / 'first'}\n"
  assert len(list((tmp_path / "first").glob("*.png"))) == 16
  message = _error(entry_point("sample", *words, "--seed=1", f"--output={tmp_path / 'first'}"), 4)
  assert "finished output already" in message
  message = _error(
    entry_point("sample", *words, "--sample_steps=5000", f"--output={tmp_path / 'many'}"), 2
  )
  assert "5000" in message and not (tmp_path / "many").exists()

  _, output = resized
  clean = Path(f"{output}.work") / "clean"
  done = entry_point(
    "evaluate",
    *(f"--real={clean}", f"--samples={tmp_path / 'first'}"),
    *(f"--clean={clean}", f"--protected={output}", "--radius_255=16"),
    f"--json={tmp_path / 'found.json'}",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["FD-EffLite0"]["fd"] > 0
  assert 0 < found["pictures"]["rms_ratio"] <= 1 and 10 < found["pictures"]["psnr"] < 60
  for group, metrics in found.items():
    assert re.search(rf"^{group}$", done.stdout, re.MULTILINE)
    for name, value in metrics.items():
      assert re.search(rf"^  {name} +{re.escape(f'{value:.6g}')}$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_advdm_attacks_a_given_model(
  model: Path, pictures: Path, tmp_path: Path, entry_point
) -> None:
  done = entry_point(
    "protect",
    *_smoke(pictures, tmp_path / "out", "--method=advdm", f"--model={model}"),
    "--config.protections.advdm.num_rounds=2",
  )
  assert done.returncode == 0, done.stderr
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert manifest["method"] == "advdm" and manifest["worst"]["max_abs_255"] > 0
  assert manifest["config"]["model"]["path"] == model.name
