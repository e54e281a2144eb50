"""Models by name on the Hugging Face Hub: its cache as the library lays it out, and its answers."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import hub, pipeline, places

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
  """An empty cache; nothing is asked of the network."""
  place = tmp_path / "cache" / "hub"
  place.mkdir(parents=True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

  def offline(*_: Any, **__: Any) -> None:
    raise huggingface_hub.errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
  monkeypatch.chdir(tmp_path)
  hub._folder.cache_clear()
  yield place
  hub._folder.cache_clear()


def into_cache(cache: Path, repo: str, folder: Path, commit: str = COMMIT) -> Path:
  """Puts a folder into the cache as the library does, as the newest revision."""
  home = cache / f"models--{repo.replace('/', '--')}"
  snapshot = home / "snapshots" / commit
  shutil.copytree(folder, snapshot)
  (home / "refs").mkdir(exist_ok=True)
  (home / "refs" / "main").write_text(commit)
  return snapshot


def test_a_model_in_the_cache(cache: Path, tiny_pipeline_folder: Path) -> None:
  snapshot = into_cache(cache, "artist/tiny", tiny_pipeline_folder)
  assert places.resolve("artist/tiny") == snapshot
  assert places.kind_of("artist/tiny@main") == places.LATENT
  assert places.pinned("artist/tiny") == f"artist/tiny@{COMMIT}"
  assert places.pinned(f"artist/tiny@{COMMIT}") == f"artist/tiny@{COMMIT}"
  assert places.pinned("tiny_ldm") == "tiny_ldm" and places.pinned("/a/b") == "/a/b"
  assert places.named(f"artist/tiny@{COMMIT}") == f"artist/tiny@{COMMIT}"
  made = pipeline.load_pipeline(f"artist/tiny@{COMMIT}")
  assert made.tokenizer is not None


def test_a_folder_of_that_name_wins(
  cache: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
  into_cache(cache, "artist/tiny", tiny_pipeline_folder)
  (tmp_path / "artist").mkdir()
  (tmp_path / "artist" / "tiny").symlink_to(tiny_pipeline_folder)
  assert places.resolve("artist/tiny") == Path("artist/tiny")
  assert places.pinned("artist/tiny") == "artist/tiny"
  (tmp_path / "artist" / "tiny").unlink()
  with pytest.raises(
    MissingDataError, match="no folder artist/tiny, though artist is here; .*@mai"
  ):
    places.kind_of("artist/tiny")


@pytest.mark.parametrize(
  "lost", ["", "unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer"]
)
def test_not_whole_in_the_cache(lost: str, cache: Path, tiny_pipeline_folder: Path) -> None:
  if lost:
    snapshot = into_cache(cache, "artist/tiny", tiny_pipeline_folder)
    place = snapshot / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
  with pytest.raises(MissingDataError) as raised:
    places.kind_of("artist/tiny@main")
  said = str(raised.value)
  assert "no folder artist/tiny is here" in said and "cannot be reached" in said
  assert (
    '`hf download artist/tiny --revision main --include "*.json" "*.txt" "*.safetensors"`' in said
  )
  assert "\n" not in said


class Answers:
  """A Hub that has one repository; records what is fetched."""

  def __init__(self, cache: Path, folder: Path, commit: str = COMMIT, names=None):
    self.cache, self.folder, self.commit = cache, folder, commit
    files = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    self.names = names or files
    self.fetched: list[str] = []
    self.error: Exception | None = None

  def model_info(self, repo: str, revision: str | None = None) -> Any:
    if self.error is not None:
      raise self.error
    return SimpleNamespace(
      sha=self.commit, siblings=[SimpleNamespace(rfilename=name) for name in self.names]
    )

  def snapshot_download(self, repo, revision=None, allow_patterns=None, local_files_only=False):
    if local_files_only:
      return huggingface_hub_snapshot(repo, revision=revision, local_files_only=True)
    home = self.cache / f"models--{repo.replace('/', '--')}"
    for name in allow_patterns:
      target = home / "snapshots" / self.commit / name
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(self.folder / name, target)
      self.fetched.append(name)
    return str(home / "snapshots" / self.commit)


huggingface_hub_snapshot = huggingface_hub.snapshot_download


@pytest.fixture
def answers(cache: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
  made = Answers(cache, tiny_pipeline_folder)
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
  return made


def test_what_is_fetched(answers: Answers) -> None:
  answers.names += ["README.md", "v1-5-pruned.safetensors", "unet/x.bin", "safety_checker/a.json"]
  folder = places.resolve("artist/tiny")
  assert folder.name == COMMIT
  files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
  assert "unet/diffusion_pytorch_model.safetensors" in files and "tokenizer/vocab.json" in files
  assert not any(name.endswith((".md", ".bin")) or "safety" in name for name in files)
  # Once a run, and configs before weights.
  count = len(answers.fetched)
  assert places.pinned("artist/tiny") == f"artist/tiny@{COMMIT}" and len(answers.fetched) == count
  first = [name.endswith(".safetensors") for name in answers.fetched]
  assert not any(first[: first.index(True)]) and first.index(True) > 4


def test_a_model_that_is_refused_costs_no_weights(answers: Answers, tmp_path: Path) -> None:
  index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxModel"]}
  answers.folder = tmp_path / "flux"
  (answers.folder / "transformer").mkdir(parents=True)
  (answers.folder / "model_index.json").write_text(json.dumps(index))
  (answers.folder / "transformer" / "config.json").write_text("{}")
  answers.names = ["model_index.json", "transformer/config.json", "transformer/model.safetensors"]
  with pytest.raises(ConfigError, match="is Flux"):
    places.kind_of("artist/flux")
  assert answers.fetched == ["model_index.json", "transformer/config.json"]


def _error(kind: str) -> Exception:
  try:
    import httpx

    response: Any = httpx.Response(404, request=httpx.Request("GET", "https://x"))
  except ImportError:
    response = None
  return getattr(huggingface_hub.errors, kind)(kind, response=response)


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("GatedRepoError", "artist/tiny is gated .* accept its terms .*`hf auth login`"),
    ("RepositoryNotFoundError", "has no model of that name"),
    ("RevisionNotFoundError", "has no revision 'v2'"),
    ("HfHubHTTPError", "cannot be reached: .*`hf download artist/tiny --revision v2"),
  ],
)
def test_refusals_of_the_hub(kind: str, message: str, answers: Answers) -> None:
  answers.error = _error(kind)
  with pytest.raises(MissingDataError, match=message):
    places.kind_of("artist/tiny@v2")


def test_the_cache_serves_while_the_hub_is_away(
  answers: Answers, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
  into_cache(cache, "artist/tiny", answers.folder, OTHER)
  answers.error = ConnectionError("no route")
  assert places.pinned("artist/tiny") == f"artist/tiny@{OTHER}"
  assert "did not answer for artist/tiny (no route); taking revision" in caplog.text
  # A commit is not asked for again.
  answers.error = AssertionError("asked")
  assert places.resolve(f"artist/tiny@{OTHER}").name == OTHER


FULL, HALF = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(
  ("weights", "wanted"),
  [
    ([FULL, HALF], [FULL]),
    ([HALF, "diffusion_pytorch_model.bin"], [HALF]),
    ([FULL, "diffusion_pytorch_model.non_ema.safetensors", "flax_model.msgpack"], [FULL]),
    (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json", "model.fp16-00001-of-00002.safetensors",
      "model.safetensors.index.fp16.json"],
     ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json"]),
  ],
)  # fmt: skip
def test_one_variant_of_the_weights(weights: list[str], wanted: list[str]) -> None:
  names = ["model_index.json", "unet/config.json", *(f"unet/{name}" for name in weights)]
  found = hub.chosen([*names, "x.safetensors", "model.safetensors"])
  assert found == sorted(["model_index.json", "unet/config.json", *(f"unet/{n}" for n in wanted)])
  # A part alone, such as a VAE or a DDPM.
  found = hub.chosen(["config.json", "README.md", *weights])
  assert found == sorted(["config.json", *wanted])


def test_repositories_without_a_model() -> None:
  with pytest.raises(ConfigError, match="run `hf download a/b v1.safetensors` and give the file"):
    hub.chosen(["README.md", "v1.safetensors"], "a/b")
  with pytest.raises(ConfigError, match="is no diffusers folder: it has no unet/config.json"):
    hub.chosen(["README.md"], "a/b")
  with pytest.raises(
    MissingDataError, match="a/b has unet/diffusion_pytorch_model.bin only, a pick"
  ):
    hub.chosen(["unet/config.json", "unet/diffusion_pytorch_model.bin"], "a/b")
  names = ["vocab.json", "merges.txt", "model.safetensors", "config.json"]
  assert hub.chosen(names, "a/b", hub.TOKENIZER) == ["merges.txt", "vocab.json"]


def test_vocabulary_in_the_cache(cache: Path, tiny_pipeline_folder: Path) -> None:
  assert hub.cached("a/clip", ["vocab.json", "merges.txt"]) is None
  snapshot = into_cache(cache, "a/clip", tiny_pipeline_folder / "tokenizer")
  assert hub.cached("a/clip", ["vocab.json", "merges.txt"]) == snapshot
  assert hub.cached("a/clip", ["vocab.json", "nothing.txt"]) is None
  assert hub.resolve("a/clip", hub.TOKENIZER) == snapshot


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
  real = builtins.__import__

  def without(name: str, *args: Any, **kwargs: Any) -> Any:
    if name.partition(".")[0] == "huggingface_hub":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(MissingDataError, match=r"huggingface_hub is missing: pip install 'udp-jax"):
    places.kind_of("artist/tiny")
  assert hub.cached("a/clip", ["vocab.json"]) is None
