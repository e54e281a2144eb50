"""`experiments.sample` with a latent model: prompts, and pictures to start from."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from udp_jax.data import manifest
from udp_jax.models import lora, lora_files, trainable
from udp_jax.models.learned_tokens import save_learned_token


@pytest.fixture(scope="module")
def sample(entry_point, tiny_pipeline_folder):
  """Runs the entry point on the tiny model."""

  def run(output: Path, *words: str):
    fixed = ["--num_samples=3", "--per_device_batch_size=2", "--sample_steps=3", "--noprogress"]
    place = [f"--model={tiny_pipeline_folder}", f"--output={output}"]
    return entry_point("sample", *place, *fixed, *words)

  return run


@pytest.mark.slow
def test_prompts_take_turns_with_files_of_what_was_learned(sample, tiny_pipeline, tmp_path):
  """One run for both: compiling is what takes its time."""
  targets = lora.UNET_TARGETS
  factors = lora.init_factors(
    jax.random.key(0), tiny_pipeline.params["unet"], rank=2, targets=targets
  )
  low_rank = lora_files.save_lora(tmp_path, {"unet": factors})
  width = trainable.token_table(tiny_pipeline.params).shape[1]
  embedding = save_learned_token(tmp_path, "<mine>", np.ones((2, width), np.float32))
  (tmp_path / "prompts.txt").write_text("a dog by the sea\n\n")
  done = sample(
    tmp_path / "out",
    "--prompt=a picture of <mine>",
    *(f"--lora={low_rank}", "--lora_scale=0.5", f"--embedding={embedding}"),
    f"--prompt_file={tmp_path / 'prompts.txt'}",
    "--negative_prompt=blurry",
    "--sampler=dpm_solver_pp_2m",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"3 samples: {tmp_path / 'out'}\n"
  read, record = manifest.read_folder(tmp_path / "out")
  assert read.images.shape == (3, 16, 16, 3)
  assert np.std(read.images[0].astype(float) - read.images[2]) > 1  # Not one picture thrice.
  assert record["prompts"] == ["a picture of <mine>", "a dog by the sea"]
  assert record["negative_prompt"] == "blurry" and record["guidance_scale"] == 7.5
  assert record["sampler"] == "dpm_solver_pp_2m" and record["sample_steps"] == 3
  assert record["loras"] == [low_rank.name] and record["lora_scale"] == 0.5
  assert record["embeddings"] == [embedding.name]
  # The files in each other's places.
  done = sample(tmp_path / "other", f"--lora={embedding}")
  assert done.returncode == 3 and "belongs to no module of this model" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_mask_keeps_the_rest_of_a_picture(sample, tmp_path):
  generator = np.random.default_rng(0)
  picture = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
  mask = np.zeros((20, 16), np.uint8)
  mask[:, 8:] = 255
  Image.fromarray(picture).save(tmp_path / "picture.png")
  Image.fromarray(mask).save(tmp_path / "mask.png")
  start = [f"--init_image={tmp_path / 'picture.png'}", f"--mask={tmp_path / 'mask.png'}"]
  done = sample(tmp_path / "out", "--prompt=a cat", "--sampler=ddpm", *start)
  assert done.returncode == 0, done.stderr
  images, record = manifest.read_folder(tmp_path / "out")
  # The centre square, which is not resized here.
  np.testing.assert_array_equal(images.images[:, :, :8], np.stack([picture[2:18, :8]] * 3))
  assert np.all(np.any(images.images[:, :, 8:] != picture[2:18, 8:], axis=(1, 2, 3)))
  assert record["strength"] == 1.0 and json.dumps(record["mask"])


@pytest.mark.slow
def test_a_mask_that_is_white_nowhere_is_refused_as_by_protect(sample, tmp_path):
  Image.new("RGB", (20, 16), (9, 99, 199)).save(tmp_path / "picture.png")
  # Red where it is painted, and white that nobody sees elsewhere.
  mask = Image.new("RGBA", (20, 16), (255, 255, 255, 0))
  mask.paste((255, 0, 0, 255), (4, 4, 12, 12))
  mask.save(tmp_path / "mask.png")
  start = [f"--init_image={tmp_path / 'picture.png'}", f"--mask={tmp_path / 'mask.png'}"]
  done = sample(tmp_path / "out", *start)
  assert done.returncode == 3 and "is coloured: paint it white" in done.stderr, done.stderr
  assert "so nothing would be painted anew" in done.stderr
  # White, but only beside the centre square.
  Image.new("L", (20, 16), 0).save(tmp_path / "mask.png")
  with Image.open(tmp_path / "mask.png") as mask:
    mask.paste(255, (0, 0, 2, 16))
    mask.save(tmp_path / "mask.png")
  done = sample(tmp_path / "out", *start)
  assert done.returncode == 3 and "the centre square of" in done.stderr, done.stderr
  assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "words, message",
  [
    (["--mask=m.png"], "--mask needs --init_image"),
    (["--sampler=ddpm", "--eta=0.5"], "--eta is an option of ddim, not of ddpm"),
    (["--lora_scale=0.5"], "--lora_scale needs --lora"),
    (["--prompt_file=nowhere.txt"], "nowhere.txt: no such file"),
  ],
)
def test_flags_that_mean_nothing_are_refused(sample, tmp_path, words, message):
  done = sample(tmp_path / "out", *words)
  assert done.returncode in (2, 3) and message in done.stderr, done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "out").exists()
