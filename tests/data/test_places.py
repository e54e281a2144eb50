"""What may be read and written together, who uses a folder, and what may be deleted."""

from __future__ import annotations

import contextlib
import importlib
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

import experiments
from experiments import _cli
from tests.data.made import ROOT, finished_folder, save_picture
from udp_jax.data import clearing, folder, manifest, marks, places
from udp_jax.errors import ConfigError, OutputError
from udp_jax.runtime import locks, workdir


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
  save_picture(tmp_path / "in" / "a.png")
  save_picture(tmp_path / "out.work" / "clean" / "a.png")
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
  save_picture(tmp_path / "start.png")
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
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  assert places.from_config(config) == {}
  save_picture(tmp_path / "in" / "a.png")
  config.data.source = f"folder:{tmp_path / 'in'}"
  inside = places.use(config=config, work={"--workdir": tmp_path / "in" / "run"})
  with pytest.raises(OutputError, match=r"--workdir .* lies in config\.data\.source"), inside:
    pytest.fail("the run began")


_PLACES = {"input", "output", "workdir", "json", "clean", "protected", "real", "samples"}


# What each needs beside its places; an entry point that is new may need a line here.
_WORDS: dict[str, list[str]] = {
  "benchmark": ["--config=default:smoke"],
  "eudp": ["--config=demo_pixels:smoke"],
  "evaluate": ["--radius_255=8"],
  "timesteps": ["--model=MODEL"],
  "impress": ["--config=demo:smoke"],
  "page": [],
  "protect": ["--method=random_noise"],
  "purify": ["--method=jpeg"],
  "sample": ["--model=MODEL"],
  "train": ["--method=scratch"],
  "train_ldm": ["--config=tiny_ldm:smoke"],
  "udp": ["--config=demo_pixels:smoke"],
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
    elif hasattr(module, "start"):
      module.start()
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
  finished_folder(tmp_path / "out")
  finished_folder(tmp_path / "out.work" / "clean", {"method": "clean"})
  finished_folder(tmp_path / "elsewhere", {"method": "clean"})
  workdir.mark(tmp_path / "out.work")
  (tmp_path / "link").symlink_to("out.work")
  (tmp_path / "half").mkdir()
  (tmp_path / "half" / marks.INCOMPLETE).write_text('{"files": ["c.png"]}')
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


def test_a_place_has_many_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "r").mkdir()
  (tmp_path / "link").symlink_to("r")
  spelled = ["r", "r/", "./r", "x/../r", "folder:r", f"{tmp_path}/r", "~/r", "link", "folder:link/"]
  assert {places.canonical(text) for text in spelled} == {str(tmp_path / "r")}
  assert places.canonical("npz:a.npz") == places.canonical("./a.npz") == str(tmp_path / "a.npz")
  assert places.canonical("cifar10:r/") == f"cifar10:{tmp_path / 'r'}"
  assert places.canonical("windows:r/") == f"windows:{tmp_path / 'r'}" != places.canonical("r")
  assert places.canonical("tfds:mnist:train@r/") == f"tfds:mnist:train@{tmp_path / 'r'}"
  for text in ("builtin", "tiny_ldm", "", "tfds:mnist"):
    assert places.canonical(text) == text
  assert not places.same("r", "cifar10:r") and not places.same("r", "s") and places.same(3, 3)


def test_a_work_folder_belongs_to_a_place_and_not_to_its_spelling(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  from udp_jax.data import image_set
  from udp_jax.stages import purify
  from udp_jax.studies import settings as settings_lib

  for place in ("one/r", "one/m", "two/r", "elsewhere"):
    (tmp_path / place).mkdir(parents=True)
  config = _cli.get_config("eudp", "demo_pixels:smoke")
  pictures = image_set.ImageSet(np.zeros((1, 8, 8, 3), np.uint8), ["a"])
  pictures = image_set.finish(pictures, "folder r")
  work = tmp_path / "work"

  def check(source: str, model: str = "m", place: Path = work) -> None:
    config.data.source, config.model.path = source, model
    settings_lib.check(config, place, pictures)

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
  purify._check_settings(tmp_path / "pure", settings, False)
  purify._check_settings(tmp_path / "pure", settings | {"model": f"{tmp_path}/one/m/"}, False)
  with pytest.raises(ConfigError, match="other settings"):
    purify._check_settings(tmp_path / "pure", settings | {"model": "../two/m"}, False)


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
    finished_folder(place)
  assert sorted(os.listdir(place)) == ["a.png", "b.png", "manifest.json"]
  with places.use(outputs={"--output": tmp_path / "other" / "out"}):
    pass
  assert not (tmp_path / "other").exists()


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
  place = finished_folder(tmp_path / "ours", record)
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
  from udp_jax.runtime import files

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
  workdir.check(tmp_path / "home")
  (tmp_path / "home" / "config.json").write_text('{"theme": "dark"}')
  inside = places.use(work={"--workdir": tmp_path / "home"})
  with pytest.raises(OutputError, match="no work folder of ours and holds config.json"), inside:
    pytest.fail("the run began")
  with pytest.raises(OutputError, match="no work folder of ours"):
    clearing.clear(tmp_path / "home")
  assert len(os.listdir(tmp_path / "home")) == 2


def test_guard_is_quick(tmp_path: Path) -> None:
  """It is asked before jax is imported."""
  code = "import sys, udp_jax.data.places; sys.exit('jax' in sys.modules)"
  started = time.monotonic()
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
  assert time.monotonic() - started < 60


def test_models_of_the_hub_are_no_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(tmp_path)
  pinned = f"artist/tiny@{'a' * 40}"
  for name in ("artist/tiny", pinned):
    with places.use(named={"--model": name}, outputs={"--output": tmp_path / "artist"}):
      pass
  assert places.canonical(pinned) == pinned and not places.same(pinned, f"artist/tiny@{'b' * 40}")
  config = {"model": {"path": pinned, "vae": "/home/me/vae.safetensors"}}
  said = places.published({"model": pinned, "config": config})
  assert said["model"] == said["config"]["model"]["path"] == pinned
  assert said["config"]["model"]["vae"] == "vae.safetensors"
