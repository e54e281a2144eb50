"""Fine-tuning threats on a model of a few matrices that draws its colours from prompts."""

from __future__ import annotations

import re
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.docstrings import check_constructor
from udp_jax import threats
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.models import lora as low_rank
from udp_jax.models import lora_files, trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.learned_tokens import load_learned_token
from udp_jax.models.sampling import Sampling
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import schedules
from udp_jax.ops.keys import example_keys, stream
from udp_jax.ops.timesteps import uniform
from udp_jax.runtime import mesh
from udp_jax.stages import train
from udp_jax.stages.records import Run
from udp_jax.threats.finetuning import Training, learning_rates, one_caption

KEY = jax.random.key(4)
SIZE, WIDTH, VOCABULARY, LENGTH = 8, 6, 10, 3
SUBJECT, CLASS, EMPTY = [[2, 3, 4]], [[2, 3, 5]], [[0, 0, 0]]
STEPS = 60
OPTIONS = {"train_steps": STEPS, "sample_steps": 5, "guidance_scale": 2.0}
METHODS = {
  "full": {"learning_rate": 0.05},
  "full with text": {"learning_rate": 0.05, "train_text_encoder": True, "ema_decay": 0.5},
  "lora": {"learning_rate": 0.05, "rank": 2, "flip": True, "decay": "cosine"},
  "lora with text": {"learning_rate": 0.05, "rank": 2, "scale": 0.5, "train_text_encoder": True},
  "textual_inversion": {"learning_rate": 0.2, "token_ids": [VOCABULARY], "init_from": 4},
}


def _draw(seed: int, *shape: int) -> jax.Array:
  drawn = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])
  return jnp.float32(drawn)


@pytest.fixture(scope="module")
def params() -> dict:
  names = {"to_q": (3, 8), "to_k": (WIDTH, 8), "to_v": (WIDTH, 8), "to_out_0": (8, 3)}
  attention = {name: {"kernel": _draw(i, *shape)} for i, (name, shape) in enumerate(names.items())}
  text = {
    "embeddings": {"token_embedding": {"embedding": _draw(7, VOCABULARY, WIDTH)}},
    "encoder": {
      f"{name}_proj": {"kernel": _draw(8 + i, WIDTH, WIDTH)}
      for i, name in enumerate(("q", "k", "v", "out"))
    },
  }
  return {"unet": {"attn2": attention}, "text_encoder": {"text_model": text}, "vae": {}}


@pytest.fixture(scope="module")
def model(params: dict) -> DiffusionModel:
  """The denoiser of pictures that are noise around a colour; the prompt decides the colour."""
  schedule = schedules.linear(50, beta_end=0.2)
  shape = (SIZE, SIZE, 3)

  def embed(params, ids):
    text = params["text_encoder"]["text_model"]
    x = text["embeddings"]["token_embedding"]["embedding"][ids]
    for name in ("q", "k", "v", "out"):
      x = x @ text["encoder"][f"{name}_proj"]["kernel"]
    return x

  def apply(params, x_t, timesteps, cond=None, keys=None):
    del keys
    if jnp.issubdtype(cond.dtype, jnp.integer):
      cond = embed(params, cond)
    kernels = {name: module["kernel"] for name, module in params["unet"]["attn2"].items()}
    pooled = cond.mean(1)[:, None, None]
    seen = 0.1 * jnp.tanh(x_t @ kernels["to_q"]) * (pooled @ kernels["to_k"])
    mean = (pooled @ kernels["to_v"] + seen) @ kernels["to_out_0"]
    abar = schedules.gather(schedule.alphas_cumprod, timesteps, 4)
    return jnp.sqrt(1 - abar) * (x_t - jnp.sqrt(abar) * mean) / (0.01 * abar + 1 - abar)

  return DiffusionModel(
    init=lambda key: params,
    encode=lambda params, images, keys: 2.0 * images - 1.0,
    apply=apply,
    decode=lambda params, x0: jnp.clip(0.5 * (x0 + 1.0), 0.0, 1.0),
    embed=embed,
    schedule=schedule,
    shape=shape,
    image_shape=shape,
  )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
  """uint8 (6, 8, 8, 3): one colour, little noise."""
  noise = np.random.default_rng(1).normal(scale=6.0, size=(6, SIZE, SIZE, 3))
  return np.clip(np.array([180, 90, 40]) + noise, 0, 255).astype(np.uint8)


def _build(model, method: str, **options) -> threats.Threat:
  return threats.build(method.split()[0], model, OPTIONS | METHODS[method] | options)


def _ids(method: str, count: int) -> np.ndarray:
  if method == "textual_inversion":  # Two sentences about the new word.
    return np.broadcast_to(np.int32([[2, 3, VOCABULARY], [5, 5, VOCABULARY]]), (count, 2, 3))
  return np.repeat(np.int32(SUBJECT), count, axis=0)


@pytest.fixture(scope="module")
def data(images):
  return lambda method: batches.make_batches(images, 3, cond=_ids(method, len(images)))


@pytest.fixture(scope="module")
def trained(model, params, data):
  """Method -> (threat, state, losses), made once."""
  made = {}

  def run(method: str):
    if method not in made:
      threat = _build(model, method)
      state, losses = threat.update(KEY, threat.init(KEY, params), data(method), STEPS, params)
      made[method] = threat, state, np.asarray(losses)
    return made[method]

  return run


@pytest.fixture(scope="module")
def fixed_loss(model, images):
  """The denoising loss of params on a batch that never changes."""
  objective = denoising(model, uniform(50))
  keys = jax.random.split(jax.random.key(9), 4 * len(images))
  pictures = jnp.tile(jnp.float32(images / 255), (4, 1, 1, 1))
  return jax.jit(lambda params, ids: objective(params, pictures, ids, keys)[0].mean())


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_on_a_fixed_batch_falls(method, trained, params, fixed_loss, images) -> None:
  threat, state, losses = trained(method)
  assert losses.shape == (STEPS,) and np.isfinite(losses).all() and state.step == STEPS
  ids = _ids(method, 4 * len(images))
  ids = ids[:, 0] if ids.ndim == 3 else ids
  start = threat.trainable.merge(threat.init(KEY, params).params, params)
  end = threat.trainable.merge(threat.final(state), params)
  before, after = fixed_loss(start, ids), fixed_loss(end, ids)
  assert after < 0.7 * before


CHANGED = {
  "full": "unet/.*",
  "full with text": "(unet|text_encoder)/.*",
  "lora": "unet/.*/kernel",
  "lora with text": "(unet|text_encoder)/.*/kernel",
  "textual_inversion": ".*/token_embedding/embedding",
}


@pytest.mark.parametrize("method", METHODS)
def test_all_of_theta_and_nothing_else_is_trained(method, trained, params) -> None:
  threat, state, _ = trained(method)
  end = threat.trainable.merge(threat.final(state), params)
  changed = set()
  for (path, old), new in zip(
    jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(end), strict=True
  ):
    name = "/".join(entry.key for entry in path)
    if old.shape != new.shape or np.any(old != new):
      changed.add(name)
      assert re.fullmatch(CHANGED[method], name)
  kernels = {"full": 4, "lora": 4, "lora with text": 8, "full with text": 8}
  # The token table has rows of words that nobody said, but is one array.
  assert len(changed) - ("full with text" == method) == kernels.get(method, 1)
  if method == "textual_inversion":
    table = trainable.token_table(end)
    np.testing.assert_array_equal(table[:-1], trainable.token_table(params))
  expected = state.ema_params if method == "full with text" else state.params
  assert threat.final(state) is expected


@pytest.mark.parametrize(
  "method", ["lora", pytest.param("textual_inversion", marks=pytest.mark.slow)]
)
def test_taken_up_again_ends_the_same(method, trained, params, data) -> None:
  threat, state, losses = trained(method)
  half, first = threat.update(KEY, threat.init(KEY, params), data(method), STEPS // 2, params)
  half = jax.tree.map(jnp.asarray, jax.tree.map(np.array, half))
  whole, second = threat.update(KEY, half, data(method), STEPS // 2, params)
  jax.tree.map(np.testing.assert_array_equal, whole, state)
  np.testing.assert_array_equal(np.concatenate([first, second]), losses)


@pytest.mark.slow
def test_the_stage_goes_on_from_a_checkpoint(model, params, data, tmp_path) -> None:
  def run(folder: str, steps: int):
    how = Run(
      mesh=mesh.make_mesh(jax.devices()[:1]),
      folder=tmp_path / folder,
      key=KEY,
      label="train",
      checkpoint_every=2,
      steps_per_call=2,
      progress=False,
    )
    threat = _build(model, "lora", train_steps=steps, decay="constant")
    return train.train(threat, data("lora"), params, how)

  whole = run("whole", 6)
  run("parts", 4)
  jax.tree.map(np.testing.assert_array_equal, run("parts", 6), whole)
  assert set(whole) == {"unet"}  # theta, and not the whole model.


def test_files_hold_what_was_learned(model, trained, params, tmp_path) -> None:
  threat, state, _ = trained("lora with text")
  theta = threat.final(state)
  path = threat.save(tmp_path, theta)
  merged = low_rank.merge_factors(lora_files.load_lora(path, params), params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    merged,
    threat.trainable.merge(theta, params),
  )
  threat, state, _ = trained("textual_inversion")
  token, vectors = load_learned_token(threat.save(tmp_path, threat.final(state)))
  assert token == "<concept>"
  np.testing.assert_array_equal(vectors, threat.final(state))
  assert trained("full")[0].save is None


def test_one_caption_of_each_picture_is_drawn(params) -> None:
  seen = []

  def objective(params, images, cond, keys):
    seen.append(np.asarray(cond))
    return jnp.zeros(len(images)), {}

  captions = np.arange(4)[:, None, None] * 10 + np.arange(3)[None, :, None] + np.zeros((4, 3, 2))
  drawn = one_caption(objective)
  for step in range(30):
    keys = jax.random.split(jax.random.key(step), 4)
    drawn(params, np.zeros((4, 8, 8, 3)), captions.astype(np.int32), keys)
  numbers = np.stack(seen)[..., 0]  # (steps, pictures)
  assert (numbers // 10 == np.arange(4)).all()
  assert all(set(column) == {0, 1, 2} for column in (numbers % 10).T)
  # Embeddings are no captions to choose from.
  drawn(params, np.zeros((4, 8, 8, 3)), np.ones((4, 3, 2), np.float32), keys)
  assert seen[-1].shape == (4, 3, 2)


def test_class_pictures_are_half_of_every_batch(images) -> None:
  prior = np.arange(4 * images[0].size, dtype=np.uint8).reshape(4, *images.shape[1:])
  own, other = np.repeat(np.int32(SUBJECT), 6, 0), np.repeat(np.int32(CLASS), 4, 0)
  batch = batches.batches_with_prior(
    images, own, prior, other, prior_weight=0.5, global_batch_size=8
  )
  assert batch.images.shape == (2, 8, 8, 8, 3)
  np.testing.assert_array_equal(batch.images[:, :4].reshape(-1, 8, 8, 3), images[[*range(6), 0, 1]])
  np.testing.assert_array_equal(batch.images[:, 4:].reshape(-1, 8, 8, 3), prior[[0, 1, 2, 3] * 2])
  np.testing.assert_array_equal(batch.cond[:, :4], np.broadcast_to(SUBJECT, (2, 4, 3)))
  np.testing.assert_array_equal(batch.cond[:, 4:], np.broadcast_to(CLASS, (2, 4, 3)))
  np.testing.assert_array_equal(batch.weight, [[1.0] * 4 + [0.5] * 4] * 2)
  assert len(np.unique(batch.ids)) == 16
  with pytest.raises(ConfigError, match="a global batch of 3 has no halves"):
    batches.batches_with_prior(images, own, prior, other, prior_weight=1.0, global_batch_size=3)
  with pytest.raises(ConfigError, match="do not go together"):
    batches.batches_with_prior(
      images, own, prior[:, :4], other, prior_weight=1.0, global_batch_size=4
    )


@pytest.mark.slow
def test_dreambooth_learns_and_preserves(model, params, images, fixed_loss) -> None:
  prior = np.uint8(255) - images
  own, other = np.repeat(np.int32(SUBJECT), 6, 0), np.repeat(np.int32(CLASS), 6, 0)
  options = {"learning_rate": 0.05, "prior_weight": 0.5, "rank": 2}
  threat = threats.build("dreambooth", model, OPTIONS | options)
  assert threat.prior_weight == 0.5 and threat.save is not None
  data = batches.batches_with_prior(
    images, own, prior, other, prior_weight=0.5, global_batch_size=6
  )
  state, losses = threat.update(KEY, threat.init(KEY, params), data, STEPS, params)
  # The loss is the subject's plus the weight times the class's (Ruiz et al., equation 2).
  data = jax.tree.map(jnp.asarray, data)
  batch = batches.take(data, batches.take_rows(stream(KEY, "shuffle"), jnp.int32(0), 2, 6))
  keys = example_keys(stream(KEY, "draws"), 0, batch.ids)
  objective = jax.jit(denoising(model, uniform(50)))
  each, _ = objective(params, batch.images / 255.0, batch.cond, keys)
  np.testing.assert_allclose(losses[0], each[:3].mean() + 0.5 * each[3:].mean(), rtol=1e-5)
  merged = threat.trainable.merge(threat.final(state), params)
  ids = np.repeat(np.int32(SUBJECT), 4 * len(images), 0)
  assert fixed_loss(merged, ids) < 0.7 * fixed_loss(params, ids)


def test_samples_follow_the_prompt(model, trained, params, images) -> None:
  threat, state, _ = trained("full")
  merged = threat.trainable.merge(threat.final(state), params)
  subject, empty = np.repeat(np.int32(SUBJECT), 4, 0), np.int32(EMPTY)
  samples = threat.sample(KEY, merged, 4, subject, empty)
  assert samples.shape == (4, 8, 8, 3) and samples.min() >= 0 and samples.max() <= 1
  plain = _build(model, "full", guidance_scale=1.0)
  drawn = plain.sample(KEY, merged, 4, subject)
  colour = np.asarray(images).mean((0, 1, 2)) / 255
  np.testing.assert_allclose(np.asarray(drawn).mean((0, 1, 2)), colour, atol=0.12)
  # Embeddings of before are as good as ids, and guidance does something.
  embedded, without = model.embed(merged, subject), model.embed(merged, empty)
  np.testing.assert_allclose(threat.sample(KEY, merged, 4, embedded, without), samples, atol=1e-5)
  assert np.abs(drawn - samples).max() > 0.01
  with pytest.raises(ConfigError, match="guidance needs `uncond`"):
    threat.sample(KEY, merged, 4, subject)


def test_unusable_requests(model, params, data) -> None:
  threat = _build(model, "lora with text")
  with pytest.raises(ConfigError, match="starts from a trained model"):
    threat.init(KEY, None)
  batch = data("lora")
  embedded = batch._replace(cond=np.zeros((2, 3, 3, WIDTH), np.float32))
  with pytest.raises(ConfigError, match="give token ids, not embeddings"):
    threat.update(KEY, threat.init(KEY, params), embedded, 1, params)
  for options, message in (
    ({"sampler": "euler"}, "unknown sampler 'euler'; known: ddim"),
    ({"sample_steps": 51}, "sample_steps: num_steps must be in"),
    ({"decay": "linear"}, "unknown learning-rate decay"),
  ):
    with pytest.raises(ConfigError, match=message):
      _build(model, "full", **options)
  with pytest.raises(ConfigError, match="prior_weight is -1"):
    threats.build("dreambooth", model, {"train_steps": 1, "prior_weight": -1})
  with pytest.raises(ConfigError, match="threat img2img edits pictures and trains nothing"):
    threats.build("img2img", model, {"sample_steps": 10})
  with pytest.raises(ConfigError, match="threat full trains a model and edits no pictures"):
    threats.build_edit("full", model, {"train_steps": 1, "sample_steps": 10})


EDIT = {"sample_steps": 10, "guidance_scale": 1.0}


def test_img2img_moves_towards_the_prompt(model, trained, params, images) -> None:
  threat, state, _ = trained("full")
  merged = threat.trainable.merge(threat.final(state), params)
  given = 1 - jnp.float32(images[:3] / 255)
  ids = np.repeat(np.int32(SUBJECT), 3, 0)
  keys = jax.random.split(KEY, 3)
  colour = np.asarray(images).mean((0, 1, 2)) / 255
  far = []
  for strength in (0.1, 1.0):
    edit = threats.build_edit("img2img", model, EDIT | {"strength": strength})
    out = edit.apply(keys, merged, given, ids)
    assert out.shape == given.shape and not edit.needs_masks
    far.append(np.abs(np.asarray(out).mean((0, 1, 2)) - colour).max())
    alone = edit.apply(keys[1:2], merged, given[1:2], ids[1:2])
    np.testing.assert_allclose(alone[0], out[1], atol=1e-5)
  assert far[1] < 0.08 < far[0]
  for strength in (0.0, 1.5, 0.01):
    with pytest.raises(ConfigError, match="strength"):
      threats.build_edit("img2img", model, EDIT | {"strength": strength})


def test_inpainting_keeps_what_is_not_masked(model, trained, params, images) -> None:
  threat, state, _ = trained("full")
  merged = threat.trainable.merge(threat.final(state), params)
  given = 1 - jnp.float32(images[:3] / 255)
  masks = jnp.zeros((3, SIZE, SIZE, 1)).at[:, 2:6, :4].set(1.0)
  ids, keys = np.repeat(np.int32(SUBJECT), 3, 0), jax.random.split(KEY, 3)
  edit = threats.build_edit("inpaint", model, EDIT)
  assert edit.needs_masks
  out = edit.apply(keys, merged, given, ids, masks=masks)
  inside = np.broadcast_to(masks > 0, out.shape)
  np.testing.assert_array_equal(np.where(inside, 0, out), np.where(inside, 0, given))
  colour = np.asarray(images).mean((0, 1, 2)) / 255
  np.testing.assert_allclose(np.asarray(out)[:, 2:6, :4].mean((0, 1, 2)), colour, atol=0.1)
  with pytest.raises(ConfigError, match="inpainting needs masks"):
    edit.apply(keys, merged, given, ids)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver_pp_2m"])
def test_edits_by_every_sampler(model, params, images, sampler) -> None:
  given = jnp.float32(images[:3] / 255)
  ids, keys = np.repeat(np.int32(SUBJECT), 3, 0), jax.random.split(KEY, 3)
  masks = jnp.zeros((3, SIZE, SIZE, 1)).at[:, 2:6].set(1.0)
  options = EDIT | {"sampler": sampler, "strength": 0.6}
  for name, more in (("img2img", {}), ("inpaint", {"masks": masks})):
    apply = threats.build_edit(name, model, options).apply
    out = apply(keys, params, given, ids, **more)
    assert np.isfinite(out).all() and np.abs(out - given).max() > 0.01
    # A picture's result is its own, whatever the sampler draws.
    other = apply(keys[::-1], params, given[::-1], ids, **more)
    np.testing.assert_allclose(other[::-1], out, atol=1e-5)


def test_what_edits_refuse(model) -> None:
  for options, message in (
    ({"sampler": "euler"}, "unknown sampler 'euler'; known: ddim"),
    ({"sampler": "ddpm", "eta": 0.5}, "eta is an option of ddim, not of ddpm"),
    ({"sample_steps": 51}, "sample_steps: num_steps must be in"),
  ):
    for name in ("img2img", "inpaint"):
      with pytest.raises(ConfigError, match=message):
        threats.build_edit(name, model, EDIT | options)


@pytest.mark.parametrize(
  "name", ["full", "lora", "dreambooth", "textual_inversion", "img2img", "inpaint"]
)
def test_interface(name: str) -> None:
  function = getattr(import_module(f"udp_jax.threats.{name}"), name)
  check_constructor(function)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (5, 10), (900, 50)])
def test_learning_rates_by_hand(decay, steps, warmup) -> None:
  """A line from 0, then the rate itself, or half a cosine over the rest."""
  training = Training(learning_rate=0.3, warmup_steps=warmup, decay=decay)
  at = np.arange(max(steps, warmup) + 5)
  found = jax.jit(jax.vmap(learning_rates(steps, training)))(at)
  done = np.clip((at - warmup) / max(1, steps - warmup), 0, 1)
  after = np.ones(len(at)) if decay == "constant" else 0.5 + 0.5 * np.cos(np.pi * done)
  expected = 0.3 * np.where(at < warmup, at / max(1, warmup), after)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_what_a_threat_has_no_use_for_is_refused(gaussian_model) -> None:
  asked = Sampling(sample_steps=5, uncond_ids=(1,))
  for name, given in (("full", {"train_steps": 1}), ("img2img", {}), ("inpaint", {})):
    function = getattr(import_module(f"udp_jax.threats.{name}"), name)
    with pytest.raises(ConfigError, match=r"has no use for Sampling.uncond_ids; it takes: sample_"):
      function(gaussian_model, sampling=asked, **given)
