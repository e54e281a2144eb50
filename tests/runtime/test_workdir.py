"""Work folders: whose they are, and what goes from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from udp_jax.errors import ConfigError, OutputError
from udp_jax.runtime import workdir


@pytest.mark.parametrize(
  ("name", "content", "ours"),
  [
    (workdir.MARK, {}, True),
    ("config.json", {"data": 1, "seed": 2, "performance": 3, "more": 4}, True),
    ("config.json", {"data": 1, "seed": 2}, False),
    ("settings.json", {"method": 1, "options": 2, "seed": 3, "pictures": 4}, True),
    ("bench.json", {"header": 1, "rows": 2}, True),
    ("report.json", {"header": 1, "rows": 2}, False),
    ("config.json", ["data", "seed", "performance"], False),
  ],
)
def test_how_a_work_folder_is_known(name: str, content, ours: bool, tmp_path: Path) -> None:
  (tmp_path / name).write_text(json.dumps(content))
  assert workdir.is_ours(tmp_path) == ours


def test_a_folder_of_someone_else_is_not_written_over(tmp_path: Path) -> None:
  (tmp_path / "photographs").mkdir()
  workdir.check(tmp_path)
  workdir.check(tmp_path / "new")
  (tmp_path / "report.html").touch()
  with pytest.raises(OutputError, match="no work folder of ours and holds report.html"):
    workdir.check(tmp_path)
  workdir.mark(tmp_path)
  workdir.check(tmp_path)


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
  path = tmp_path / "config.json"

  def claim(seed: int, **options) -> None:
    workdir.claim(
      path, {"seed": seed}, lambda old: ["seed"] if old["seed"] != seed else [], **options
    )

  claim(1)
  claim(1)
  assert workdir.is_ours(tmp_path)
  with pytest.raises(ConfigError, match=r"another config \(seed differ\): choose"):
    claim(2)
  with pytest.raises(ConfigError, match=rf"{tmp_path.name}: no seed"):
    claim(2, says="{workdir}: no {changed}")
  assert json.loads(path.read_text()) == {"seed": 1}
  cleared: list[Path] = []
  claim(2, clear=cleared.append)
  assert cleared == [tmp_path] and json.loads(path.read_text()) == {"seed": 2}


def test_checkpoints_of_a_finished_stage_go_and_nothing_else(tmp_path: Path) -> None:
  folder = tmp_path / "checkpoints"
  workdir.discard_checkpoints(folder)
  for name in ("3", "12", "7.orbax-checkpoint-tmp"):
    (folder / name / "state").mkdir(parents=True)
  (folder / "notes").mkdir()
  (tmp_path / "elsewhere").mkdir()
  (folder / "5").symlink_to(tmp_path / "elsewhere")
  workdir.discard_checkpoints(folder)
  assert sorted(path.name for path in folder.iterdir()) == ["5", "notes"]
  (folder / "5").unlink()
  (folder / "notes").rmdir()
  (folder / "4").mkdir()
  workdir.discard_checkpoints(folder)
  assert not folder.exists()


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b""])
def test_what_is_no_object_reads_as_empty(content: bytes, tmp_path: Path) -> None:
  (tmp_path / "file").write_bytes(content)
  assert workdir.read_object(tmp_path / "file") == {} == workdir.read_object(tmp_path / "none")
