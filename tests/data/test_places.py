"""What may be read and written together, who uses a folder, and what may be deleted."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from PIL import Image

import experiments
from experiments import _cli
from udp_jax.data import folder, locks, manifest, output, places, work_folder
from udp_jax.errors import ConfigError, MissingDataError, OutputError

ROOT = Path(__file__).resolve().parents[2]


def _picture(path: Path, seed: int = 0) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def _finished(place: Path, record: dict[str, Any] | None = None, names=("a", "b")) -> Path:
  pixels = np.random.default_rng(0).integers(0, 256, (len(names), 8, 9, 3), dtype=np.uint8)
  manifest.write_folder(place, pixels, names, record=record or {"method": "x"})
  return place


@pytest.mark.parametrize("role", ["outputs", "work"])
@pytest.mark.parametrize(
  ("read", "written", "words"),
  [
    ("in", "in", "is the same as"),
    ("in/", "./in/../in", "is the same as"),
    ("link", "in", "is the same as"),
    ("in", "in/out", "lies in"),
    ("folder:in", "link/out", "lies in"),
    ("out.work/clean", "out.work", "lies in"),
    ("npz:out/x.npz", "out", "lies in"),
    ("cifar10:out/data", "out", "lies in"),
    ("tfds:mnist@out/data", "out", "lies in"),
  ],
)
def test_what_is_read_and_what_is_written_keep_apart(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, read: str, written: str, words: str
) -> None:
  monkeypatch.chdir(tmp_path)
  _picture(tmp_path / "in" / "a.png")
  _picture(tmp_path / "out.work" / "clean" / "a.png")
  (tmp_path / "link").symlink_to("in")
  before = sorted(tmp_path.rglob("*"))
  inside = places.use(pictures={"--input": read}, **{role: {"--there": written}})
  with pytest.raises(OutputError, match=words) as caught, inside:
    pytest.fail("the run began")
  assert "--input" in str(caught.value) and "--there" in str(caught.value)
  assert "\n" not in str(caught.value) and "choose another folder" in str(caught.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_what_is_written_keeps_apart_from_itself(tmp_path: Path) -> None:
  for first, second in (("o", "o"), ("o", "o/w"), ("o/w", "o")):
    inside = places.use(
      outputs={"--output": tmp_path / first}, work={"--workdir": tmp_path / second}
    )
    with pytest.raises(OutputError, match="--workdir"), inside:
      pytest.fail("the run began")
  inside = places.use(outputs={"--output": tmp_path / "o"}, reports={"--json": tmp_path / "o/x"})
  with pytest.raises(OutputError, match="--json"), inside:
    pytest.fail("the run began")
  assert list(tmp_path.iterdir()) == []


def test_what_is_harmless_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """A file, a model or an archive in the folder where the output stands; `~`; "."."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  _picture(tmp_path / "start.png")
  (tmp_path / "data.npz").touch()
  (tmp_path / "empty").mkdir()
  with places.use(
    pictures={"--input": ["npz:data.npz", "cifar10:.", "builtin", "tiny_ldm", None]},
    named={"--model": ".", "--init_image": "start.png"},
    outputs={"--output": "~/out"},
  ) as used:
    assert used == {"--output": tmp_path / "out"}
  monkeypatch.chdir(tmp_path / "empty")
  assert places.work_beside(".") == tmp_path / "empty.work" == places.work_beside("../empty/")
  with pytest.raises(OutputError, match="no folder to write to"):
    places.work_beside("/")


def test_configs_name_places_as_flags_do(tmp_path: Path) -> None:
  config = _cli.get_config("eudp", "demo:smoke")
  assert places.from_config(config) == {}
  _picture(tmp_path / "in" / "a.png")
  config.data.source = f"folder:{tmp_path / 'in'}"
  inside = places.use(config=config, work={"--workdir": tmp_path / "in" / "run"})
  with pytest.raises(OutputError, match=r"--workdir .* lies in config\.data\.source"), inside:
    pytest.fail("the run began")


# The entry points.

_PLACES = {"input", "output", "workdir", "json", "clean", "protected", "real", "samples"}
# What each needs beside its places; an entry point that is new may need a line here.
_WORDS: dict[str, list[str]] = {
  "benchmark": ["--config=default:smoke"],
  "eudp": ["--config=demo:smoke"],
  "evaluate": ["--radius_255=8"],
  "impress": ["--config=demo:smoke"],
  "protect": ["--method=random_noise"],
  "purify": ["--method=jpeg"],
  "sample": ["--model=MODEL"],
  "train": ["--method=scratch"],
  "train_ldm": ["--config=tiny_ldm:smoke"],
  "udp": ["--config=demo:smoke"],
  "verify": ["--radius_255=8"],
}


@contextlib.contextmanager
def _loaded(name: str) -> Iterator[tuple[Any, Any]]:
  """An entry point's module, loaded anew, and its main, with its flags alone defined."""
  modules = [f"experiments.{name}", "experiments._study"]
  before, parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
  for module in modules:
    sys.modules.pop(module, None)
  started: list[Any] = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_cli, "run", lambda main, **options: started.append(main))
    module = importlib.import_module(modules[0])
    if hasattr(module, "_study"):  # These define their flags where they start.
      module._study.start(name)
      main = started[0]
    else:
      main = module.main
    try:
      yield main, {flag for flag in flags.FLAGS if flag not in before}
    finally:
      for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
      for loaded in modules:
        sys.modules.pop(loaded, None)
        # `from experiments import _study` would find the old module, whose flags are gone.
        vars(experiments).pop(loaded.rpartition(".")[2], None)
      if parsed:
        flags.FLAGS.mark_as_parsed()


def _entry_points() -> list[str]:
  found = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
  return sorted(name for name in found if not name.startswith("_") and name != "configs")


class _Guarded(Exception):
  """The guard was asked."""


@pytest.mark.parametrize("name", _entry_points())
def test_every_entry_point_asks_the_guard_first(
  name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  asked: list[dict[str, Any]] = []

  @contextlib.contextmanager
  def use(**options: Any) -> Iterator[None]:
    asked.append(options)
    raise _Guarded
    yield

  monkeypatch.setattr(places, "use", use)
  monkeypatch.chdir(tmp_path)
  with _loaded(name) as (main, defined):
    given = sorted(defined & _PLACES)
    if not given:
      pytest.skip("it has no folders")
    assert name in _WORDS, f"say in _WORDS what {name} needs beside its folders"
    words = [f"--{flag}={tmp_path / flag}" for flag in given] + _WORDS[name]
    monkeypatch.setattr(sys, "argv", [name, *words])
    _cli._parse([name, *words])
    with pytest.raises(_Guarded):
      main([name])
  (options,) = asked
  told = {k: v for part in options.values() if isinstance(part, dict) for k, v in part.items()}
  told |= places.from_config(options["config"]) if options.get("config") is not None else {}
  seen = {os.fspath(value) for value in told.values() if isinstance(value, str | os.PathLike)}
  missed = [flag for flag in given if str(tmp_path / flag) not in seen]
  assert not missed, f"{name} does not tell the guard of --{missed[0]}"
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("role", "place", "words"),
  [
    ("outputs", "out.work/clean", "is a clean reference that udp_jax kept"),
    ("outputs", "elsewhere", "is a clean reference that udp_jax kept"),
    ("outputs", "out.work", "is the work folder of a run"),
    ("outputs", "out.work/clean/deeper/new", "lies in a folder that udp_jax wrote"),
    ("outputs", "out.work/new", "lies in the work folder of a run"),
    ("outputs", "link/new", "lies in the work folder of a run"),
    ("outputs", "old.work/protected/new", "lies in the work folder of a run"),
    ("outputs", "out/new", "lies in a folder that udp_jax wrote"),
    ("outputs", "half/new", "lies in a folder that udp_jax wrote"),
    ("work", "out", "is a folder that udp_jax wrote pictures to"),
    ("work", "half", "is a folder that udp_jax wrote pictures to"),
    ("work", "out.work/clean", "is a folder that udp_jax wrote pictures to"),
    ("work", "out.work/stages/new", "lies in the work folder of a run"),
    ("reports", "out.work/clean/report.json", "lies in a folder that udp_jax wrote"),
    ("reports", "out/report.json", "lies in a folder that udp_jax wrote"),
  ],
)
def test_nothing_is_written_into_the_folders_of_another_run(
  tmp_path: Path, role: str, place: str, words: str
) -> None:
  _finished(tmp_path / "out")
  _finished(tmp_path / "out.work" / "clean", {"method": "clean"})
  _finished(tmp_path / "elsewhere", {"method": "clean"})
  work_folder.mark(tmp_path / "out.work")
  (tmp_path / "link").symlink_to("out.work")
  (tmp_path / "half").mkdir()
  (tmp_path / "half" / output.INCOMPLETE).write_text('{"files": ["c.png"]}')
  (tmp_path / "old.work").mkdir()
  (tmp_path / "old.work" / "config.json").write_text('{"data": {}, "seed": 0, "performance": {}}')
  before = sorted(tmp_path.rglob("*"))
  inside = places.use(**{role: {"--there": tmp_path / place}})
  with pytest.raises(OutputError, match=words) as caught, inside:
    pytest.fail("the run began")
  assert "--there" in str(caught.value) and "choose another folder" in str(caught.value)
  assert sorted(tmp_path.rglob("*")) == before
  with places.use(
    outputs={"--output": tmp_path / "out"},
    work={"--workdir": tmp_path / "out.work"},
    reports={"--json": tmp_path / "old.work" / "report.json"},
  ):
    pass


# Spellings, and what others may see of them.


def test_a_place_has_many_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "r").mkdir()
  (tmp_path / "link").symlink_to("r")
  spelled = ["r", "r/", "./r", "x/../r", "folder:r", f"{tmp_path}/r", "~/r", "link", "folder:link/"]
  assert {places.canonical(text) for text in spelled} == {str(tmp_path / "r")}
  assert places.canonical("npz:a.npz") == places.canonical("./a.npz") == str(tmp_path / "a.npz")
  assert places.canonical("cifar10:r/") == f"cifar10:{tmp_path / 'r'}"
  assert places.canonical("tfds:mnist:train@r/") == f"tfds:mnist:train@{tmp_path / 'r'}"
  for text in ("builtin", "tiny_ldm", "", "tfds:mnist"):
    assert places.canonical(text) == text
  assert not places.same("r", "cifar10:r") and not places.same("r", "s") and places.same(3, 3)


def test_a_work_folder_belongs_to_a_place_and_not_to_its_spelling(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  from udp_jax import purifying, run_config
  from udp_jax.data import image_set

  for place in ("one/r", "one/m", "two/r", "elsewhere"):
    (tmp_path / place).mkdir(parents=True)
  config = _cli.get_config("eudp", "demo:smoke")
  pictures = image_set.finish(np.zeros((1, 8, 8, 3), np.uint8), ["a"], "folder r")
  work = tmp_path / "work"

  def check(source: str, model: str = "m", place: Path = work) -> None:
    config.data.source, config.model.path = source, model
    run_config.check(config, place, pictures)

  monkeypatch.chdir(tmp_path / "one")
  for number, first in enumerate(("r", "folder:r/", str(tmp_path / "one" / "r"))):
    place = tmp_path / f"work{number}"
    check(first, place=place)
    for again in ("r", "r/", "folder:./r", f"{tmp_path}/one/r/"):
      check(again, "./m/", place)
  check("r")
  monkeypatch.chdir(tmp_path / "elsewhere")
  check(f"{tmp_path}/one/r", f"{tmp_path}/one/m")  # It was "r", said in another folder.
  monkeypatch.chdir(tmp_path / "two")
  for source, model in ((f"{tmp_path}/two/r", "../one/m"), ("../one/r", "m")):
    with pytest.raises(ConfigError, match=r"another config \((data\.source|model\.path) differ\)"):
      check(source, model)
  monkeypatch.chdir(tmp_path / "one")
  settings = {"method": "x", "options": {}, "model": "m", "seed": 0, "pictures": 1}
  purifying._check_settings(tmp_path / "pure", settings, False)
  purifying._check_settings(tmp_path / "pure", settings | {"model": f"{tmp_path}/one/m/"}, False)
  with pytest.raises(ConfigError, match="other settings"):
    purifying._check_settings(tmp_path / "pure", settings | {"model": "../two/m"}, False)


def test_what_leaves_names_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home" / "REALNAME"))
  home, secret = tmp_path / "home" / "REALNAME", "../client/secret"
  said = places.published(
    {
      "method": "x",
      "row": "a/b",
      "model": "~/models/sd15",
      "loras": [f"{home}/a.safetensors", "b.safetensors"],
      "prompts": ["cats and/or dogs", "a/b"],
      "options": {"note": f"{tmp_path}/out"},
      "config": {
        "data": {"source": f"npz:{home}/x.npz", "image_size": 8},
        "model": {"path": str(home / "models" / "sd15")},
        "prior": {"source": "tfds:mnist:train@/data/private"},
        "evaluation": {"weights": "", "clip": "/mnt/weights/clip/"},
      },
      "origin": {
        "source": f"folder {secret}/in",
        "skipped": [["x.heic", f"{secret}/in/x.heic: not supported ({home}/b)"]],
        "notes": {"read from /etc": 1},
      },
    },
    tmp_path / "out",
  )
  assert said == {
    "method": "x",
    "row": "a/b",
    "model": "sd15",
    "loras": ["a.safetensors", "b.safetensors"],
    "prompts": ["cats and/or dogs", "a/b"],
    "options": {"note": "out"},
    "config": {
      "data": {"source": "x.npz", "image_size": 8},
      "model": {"path": "sd15"},
      "prior": {"source": "tfds:mnist:train"},
      "evaluation": {"weights": "", "clip": "clip"},
    },
    "origin": {
      "source": "folder in",
      "skipped": [["x.heic", "in/x.heic: not supported (b)"]],
      "notes": {"read from /etc": 1},
    },
  }
  assert places.published(said, tmp_path / "out") == said


# Locks.


def test_one_run_for_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
  place = tmp_path / "new" / "out"
  with places.use(outputs={"--output": place}):
    assert place.is_dir()
    for role in ("outputs", "work"):
      inside = places.use(**{role: {"--there": f"{place}/"}})
      with pytest.raises(OutputError) as caught, inside:
        pytest.fail("the run began")
      assert f"in use by process {os.getpid()} on " in str(caught.value)
      assert " since 20" in str(caught.value) and caught.value.exit_code == 4
    manifest.check_output(place)
    assert place.is_dir()
    _finished(place)
  assert sorted(os.listdir(place)) == ["a.png", "b.png", "manifest.json"]
  with places.use(outputs={"--output": tmp_path / "other" / "out"}):
    pass
  assert not (tmp_path / "other").exists()


_HOLD = """
import sys, time
from pathlib import Path
from udp_jax.data import locks
from udp_jax.errors import OutputError
locks._PATIENCE_S = float(sys.argv[2])
try:
  lock = locks.acquire(Path(sys.argv[1]))
except OutputError as error:
  print(error)
  sys.exit(4)
print("held", flush=True)
time.sleep(float(sys.argv[3]))
locks.release(lock)
"""


def _hold(place: Path, patience: float, seconds: float) -> subprocess.Popen:
  words = [sys.executable, "-c", _HOLD, str(place), str(patience), str(seconds)]
  return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
  place = tmp_path / "out"
  first = _hold(place, 0, 600)
  assert first.stdout is not None and first.stdout.readline() == "held\n"
  second = _hold(place, 0.2, 0)
  said, _ = second.communicate(timeout=60)
  assert second.returncode == 4 and f"in use by process {first.pid}" in said
  assert len(said.splitlines()) == 1
  first.kill()
  first.wait()
  first.stdout.close()
  assert (place / locks.LOCK).exists()  # Nobody's now.
  lock = locks.acquire(place)
  assert lock is not None
  locks.release(lock)
  assert os.listdir(place) == []


def test_of_many_that_start_together_one_at_a_time_runs(tmp_path: Path) -> None:
  """The file is removed by everyone who held it: a lock on a removed file must not count."""
  place = tmp_path / "out"
  started = [_hold(place, 0.3, 2.0) for _ in range(4)]
  said = [process.communicate(timeout=60)[0] for process in started]
  assert [process.returncode for process in started].count(0) >= 1
  assert all("held" in text or "in use by" in text for text in said)
  # Of two that overlap, the second found the folder there: it may stay, without the lock's file.
  assert not place.exists() or os.listdir(place) == []


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path: Path) -> None:
  place = tmp_path / "out"
  lock = locks.acquire(place)
  assert lock is not None
  (place / locks.LOCK).unlink()  # As a run that ends does, before it lets go.
  second = locks.acquire(place)
  assert second is not None
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, "_PATIENCE_S", 0.1)
    with pytest.raises(OutputError, match="in use by process"):
      locks.acquire(place)
  for held in (second, lock):
    locks.release(held)


def test_file_systems_without_locks_are_named(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
  import errno

  def none(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(locks.fcntl, "flock", none)
  with places.use(outputs={"--output": tmp_path / "out"}):
    assert not (tmp_path / "out" / locks.LOCK).exists()
  assert "its file system has no locks; do not start a second run on it" in caplog.text


# Inputs that are ours.


def test_nested_folders_of_ours_are_left_out(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  source = tmp_path / "in"
  _picture(source / "mine.png")
  _picture(source / "album" / "also.png")
  _finished(source / "out")
  _picture(source / "half" / "c.png")
  (source / "half" / output.INCOMPLETE).write_text('{"files": ["c.png"]}')
  _picture(source / "out.work" / "photographs" / "d.png")
  work_folder.mark(source / "out.work")
  _picture(source / "old.work" / "clean" / "e.png")
  (source / "old.work" / "config.json").write_text('{"data": {}, "seed": 0, "performance": {}}')
  _picture(source / "theirs" / "f.png")
  (source / "theirs" / "config.json").write_text('{"theme": "dark"}')
  found = folder.scan(source)
  assert [file.name for file in found.files] == ["album/also", "mine", "theirs/f"]
  assert found.left_out == ("half", "old.work", "out", "out.work")
  (line,) = caplog.messages
  assert line.endswith("left out 4 folders that udp_jax wrote: half, old.work, out, out.work")
  loaded = folder.load_folder(
    source, image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["left_out"] == ["half", "old.work", "out", "out.work"]
  for name in ("mine.png", "album/also.png", "theirs/f.png"):
    (source / name).unlink()
  with pytest.raises(MissingDataError, match="no images in it but in 4 folders that udp_jax wrote"):
    folder.load_folder(source, image_size=None, limit=None, seed=0, strict=False, classes=None)


def test_links_to_what_is_ours_are_left_out(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  source = tmp_path / "in"
  _picture(source / "mine.png")
  _picture(tmp_path / "theirs" / "x.png")
  ours = _finished(tmp_path / "out", names=("a", "sub/b"))
  (source / "theirs.png").symlink_to("../theirs/x.png")
  (source / "z.png").symlink_to("../out/a.png")
  (source / "part").symlink_to("../out/sub")
  found = folder.scan(source)
  assert [file.name for file in found.files] == ["mine", "theirs"]
  assert found.linked == ("z.png",) and found.left_out == ("part",)
  assert any(
    line.endswith("left out 1 links to what udp_jax wrote: z.png") for line in caplog.messages
  )
  loaded = folder.load_folder(
    source, image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["linked"] == ["z.png"]
  # A folder of ours that is asked for is read, links within it and all.
  (tmp_path / "again").symlink_to("out")
  (ours / "sub" / "c.png").symlink_to("../a.png")
  for place in (ours, tmp_path / "again"):
    assert [file.name for file in folder.scan(place).files] == ["a", "sub/b", "sub/c"]
  assert [file.name for file in folder.scan(ours / "sub").files] == ["b", "c"]
  for name in ("mine.png", "theirs.png", "part"):
    (source / name).unlink()
  with pytest.raises(MissingDataError, match=r"1 links to what udp_jax wrote \(z\.png\)"):
    folder.load_folder(source, image_size=None, limit=None, seed=0, strict=False, classes=None)


def test_hidden_pictures_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  for name in (".dot.png", ".hid/p0.png", ".hid/deep/p1.JPG", "sub/.x.heic"):
    (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / name).touch()
  for name in ("._mine.png", ".DS_Store", ".hid/notes.txt", ".hid/._p0.png", ".udp-lock"):
    (tmp_path / "in" / name).touch()
  with pytest.raises(MissingDataError, match=r"no images in it .4 hidden ones are passed over"):
    folder.load_folder(
      tmp_path / "in", image_size=None, limit=None, seed=0, strict=False, classes=None
    )
  _picture(tmp_path / "in" / "mine.png")
  caplog.clear()
  found = folder.scan(tmp_path / "in")
  assert found.hidden == (".dot.png", ".hid/deep/p1.JPG", ".hid/p0.png", "sub/.x.heic")
  (line,) = caplog.messages
  assert "passed over 4 hidden pictures: .dot.png, .hid/deep/p1.JPG" in line
  loaded = folder.load_folder(
    tmp_path / "in", image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["hidden"] == 4 and loaded.names == ("mine",)


@pytest.mark.parametrize(
  ("record", "words"),
  [
    ({"method": "eudp", "row": "eudp", "radius_255": 16}, "protected by eudp, radius 16"),
    ({"method": "jpeg", "options": {}}, "purified by jpeg"),
    ({"method": "samples"}, "sampled from a model"),
    ({"method": "clean"}, "a clean reference that udp_jax kept"),
  ],
)
def test_an_input_of_ours_is_named(
  tmp_path: Path, caplog: pytest.LogCaptureFixture, record: dict, words: str
) -> None:
  place = _finished(tmp_path / "ours", record)
  for protects, level in ((True, "WARNING"), (False, "INFO")):
    caplog.clear()
    with caplog.at_level("INFO"), places.use(pictures={"--input": place}, protects=protects):
      pass
    (entry,) = caplog.records
    assert words in entry.getMessage() and entry.levelname == level
  loaded = folder.load_folder(
    place, image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert words in loaded.origin["input_is"]
  assert loaded.names == ("a", "b")


# What may be replaced.


def test_overwriting_spares_what_somebody_put_there(tmp_path: Path) -> None:
  place = _finished(tmp_path / "out")
  mine = _picture(place / "a.png", seed=9).read_bytes()
  for extend in (False, True):
    with pytest.raises(OutputError, match=r"a\.png is not the file that its manifest.json names"):
      manifest.check_output(place, overwrite=not extend, extend=extend)
  with pytest.raises(OutputError, match=r"a\.png is not the file"):
    manifest.write_folder(place, np.zeros((1, 8, 8, 3), np.uint8), ["z"], overwrite=True)
  assert (place / "a.png").read_bytes() == mine and (place / "b.png").exists()
  (place / "a.png").unlink()  # Moved away.
  (place / "b.png").write_bytes(b"")  # Nothing that could be lost.
  with pytest.raises(
    OutputError, match=r"finished output .* of which a\.png is missing or not as it was .2 "
  ):
    manifest.check_output(place)
  manifest.write_folder(place, np.zeros((1, 8, 8, 3), np.uint8), ["z"], overwrite=True)
  assert sorted(os.listdir(place)) == ["manifest.json", "z.png"]


@pytest.mark.parametrize(
  ("content", "ours"),
  [
    ('{"ok": true, "radius_255": 8, "checked": 1, "worst": null, "failures": [], "files": []}', 1),
    ('{"pictures": {"psnr": 1.0, "ssim": 0.5, "rms_ratio": 1.0, "max_abs_255": 3}}', 1),
    ('{"FD": {"fd": 1, "precision": 1, "recall": 1, "mmd": 1, "mmd_se": 1}}', 1),
    ("{}", 0),
    ('{"files": []}', 0),
    ('{"pictures": {"psnr": 1.0}}', 0),
    ("not JSON", 0),
  ],
)
def test_reports_replace_reports_alone(tmp_path: Path, content: str, ours: bool) -> None:
  path = tmp_path / "report.json"
  path.write_text(content)
  inside = places.use(reports={"--json": path})
  if ours:
    with inside as used:
      assert used["--json"] == path
  else:
    with pytest.raises(OutputError, match="no report of ours"), inside:
      pytest.fail("the run began")
  assert path.read_text() == content
  with pytest.raises(OutputError, match="is a folder"), places.use(reports={"--json": tmp_path}):
    pytest.fail("the run began")
  with places.use(reports={"--json": "-"}) as used:
    assert used == {}


def test_devices_and_pipes_take_reports_as_they_are(tmp_path: Path) -> None:
  from udp_jax.data import files

  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  descriptor = os.open(pipe, os.O_RDWR)
  for path in (pipe, f"/dev/fd/{descriptor}", "/dev/null"):
    with places.use(reports={"--json": path}) as used:
      files.write_json(used["--json"], {"ok": True})
  assert os.read(descriptor, 100).split() == [b"{", b'"ok":', b"true", b"}"] * 2
  os.close(descriptor)
  assert os.listdir(tmp_path) == ["pipe"] and pipe.is_fifo()
  assert files.is_device("/dev/null") and not files.is_device(tmp_path)


def test_a_folder_in_use_by_others_is_no_work_folder(tmp_path: Path) -> None:
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "notes.txt").touch()
  work_folder.check(tmp_path / "home")
  (tmp_path / "home" / "config.json").write_text('{"theme": "dark"}')
  inside = places.use(work={"--workdir": tmp_path / "home"})
  with pytest.raises(OutputError, match="no work folder of ours and holds config.json"), inside:
    pytest.fail("the run began")
  with pytest.raises(OutputError, match="no work folder of ours"):
    work_folder.clear(tmp_path / "home")
  assert len(os.listdir(tmp_path / "home")) == 2


def _work(tmp_path: Path, *, sources: bool = True) -> tuple[Path, Path]:
  """A work folder as a run leaves it, and the folder of its pictures."""
  from udp_jax import pictures
  from udp_jax.data import picture_folder

  work, source = tmp_path / "out.work", tmp_path / "in"
  for number, name in enumerate("ab"):
    _picture(source / f"{name}.png", number)
  pictures._write_clean(picture_folder.list_pictures(source), work, progress=False)
  if not sources:  # As older versions did.
    for path in [work / "clean" / "manifest.json", *(work / "stages").rglob("*.json")]:
      content = json.loads(path.read_text())
      for entry in content.get("images", [content]):
        entry.pop("source")
      path.write_text(json.dumps(content))
  (work / "stages" / "protect_x" / "checkpoints" / "3").mkdir(parents=True)
  (work / "stages" / "protect_x" / "checkpoints" / "3" / "state").touch()
  (work / "stages" / "protect_x" / "metrics.jsonl").touch()
  (work / "config.json").write_text('{"data": {}, "seed": 0, "performance": {}}')
  return work, source


@pytest.mark.parametrize("sources", [True, False])
def test_what_a_run_left_is_cleared_and_nothing_else(tmp_path: Path, sources: bool) -> None:
  work, _ = _work(tmp_path, sources=sources)
  _picture(work / "stages" / "protect_x" / "checkpoints" / "saved.png")
  (work / "notes.txt").touch()
  work_folder.clear(work)
  left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
  assert left == {"stages/protect_x/checkpoints/saved.png", "notes.txt"}


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("case", ["gone", "changed", "folder gone"])
def test_the_last_copy_of_a_picture_is_never_deleted(
  tmp_path: Path, sources: bool, case: str
) -> None:
  work, source = _work(tmp_path, sources=sources)
  if case == "changed":
    _picture(source / "b.png", 7)
  elif case == "gone":
    (source / "b.png").unlink()
  else:
    source.rename(tmp_path / "elsewhere")
  before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
  with pytest.raises(OutputError, match=r"\.png may be the last copy of a picture: .*; move them"):
    work_folder.clear(work)
  assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
  for file in ("a.png", "b.png"):
    (work / "clean" / file).unlink()
  work_folder.clear(work)
  assert not (work / "clean").exists()


def test_a_clean_picture_that_somebody_changed_is_kept(tmp_path: Path) -> None:
  work, _ = _work(tmp_path)
  _picture(work / "clean" / "a.png", 5)
  with pytest.raises(OutputError, match=r"a\.png is not the file that its manifest"):
    work_folder.clear(work)
  assert (work / "config.json").exists() and (work / "clean" / "b.png").exists()


def test_the_pixels_decide_whether_a_picture_is_there(tmp_path: Path) -> None:
  work, source = _work(tmp_path)
  with Image.open(source / "a.png") as image:
    image.load()
    image.save(source / "a.png", dpi=(300, 300), compress_level=1)
  work_folder.clear(work)
  assert not (work / "clean").exists()


def test_guard_is_quick(tmp_path: Path) -> None:
  """It is asked before jax is imported."""
  code = "import sys, udp_jax.data.places; sys.exit('jax' in sys.modules)"
  started = time.monotonic()
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
  assert time.monotonic() - started < 60
