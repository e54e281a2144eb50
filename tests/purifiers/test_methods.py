"""What single purifiers promise beyond the contract."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from udp_jax import purifiers
from udp_jax.errors import ConfigError
from udp_jax.models.sd_vae import AutoencoderKL
from udp_jax.ops import schedules
from udp_jax.ops.image import to_float
from udp_jax.purifiers import gridpure as gridpure_module

KEYS = purifiers.picture_keys(jax.random.key(3), np.arange(6))


def photograph(count=6, height=24, width=30):
  y, x, c = np.mgrid[:height, :width, :3]
  waves = [np.sin(0.3 * (n + 1) * x + 0.2 * y + c) for n in range(count)]
  return np.clip(128 + 90 * np.stack(waves), 0, 255).astype(np.uint8)


def through_pillow(pixels, quality, subsampling="4:2:0"):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
  return np.asarray(Image.open(buffer))


def apply(purifier, images, keys=KEYS):
  return np.asarray(jax.jit(purifier.apply)(purifier.init(KEYS[0]), keys[: len(images)], images))


def test_jpeg_is_the_codec():
  pictures = photograph()
  got = apply(purifiers.build("jpeg", None, {"quality": 60}), to_float(pictures))
  for picture, one in zip(pictures, got):
    np.testing.assert_array_equal(np.round(255 * one), through_pillow(picture, 60))
  full = purifiers.build("jpeg", None, {"quality": 60, "chroma_subsampling": False})
  np.testing.assert_array_equal(
    np.round(255 * apply(full, to_float(pictures[:1]))[0]), through_pillow(pictures[0], 60, "4:4:4")
  )


@pytest.mark.parametrize("codec", ["libjpeg", "differentiable"])
def test_jpeg_picks_one_of_several_qualities(codec):
  pictures = np.repeat(photograph(1), 6, axis=0)
  options = {"quality": (5, 50, 95), "codec": codec}
  got = 255 * apply(purifiers.build("jpeg", None, options), to_float(pictures))
  candidates = np.stack([through_pillow(pictures[0], q) for q in options["quality"]])
  errors = np.abs(got[:, None] - candidates).mean((2, 3, 4))
  chosen = errors.argmin(1)
  assert len(set(chosen)) > 1
  # At most a level or so apart, where another quality is several away.
  assert (errors.min(1) < (1e-3 if codec == "libjpeg" else 1.5)).all()


def test_gridpure_plan_covers_and_counts():
  windows = gridpure_module.plan(20, 13, 8, 4)
  *grid, corners = windows
  assert [(y, x) for [(_, _, y, x, _)] in grid] == [
    (y, x) for y in (0, 4, 8, 12) for x in (0, 4, 5)
  ]
  assert corners == [(0, 0, 0, 0, 4), (0, 4, 0, 9, 4), (4, 0, 16, 0, 4), (4, 4, 16, 9, 4)]
  assert gridpure_module.plan(8, 8, 8, 4) == [[(0, 0, 0, 0, 8)]]
  counts = np.zeros((20, 13), int)
  for pieces in windows:
    for _, _, y, x, size in pieces:
      counts[y : y + size, x : x + size] += 1
  assert counts.min() >= 1 and counts[0, 0] == 2


def test_gridpure_puts_windows_back(gaussian_model):
  """With hardly any noise and a network that returns what it sees, the picture comes back."""
  schedule = schedules.from_betas(np.full(10, 1e-6), prediction_type="sample")
  same = gaussian_model._replace(schedule=schedule, apply=lambda p, x, t, cond=None, keys=None: x)
  purifier = purifiers.build("gridpure", same, {"timestep": 1, "num_iterations": 3, "stride": 3})
  images = 0.1 + 0.8 * to_float(photograph(2, 20, 13))
  np.testing.assert_allclose(apply(purifier, images), images, atol=0.01)


def test_gridpure_mixes_what_it_had(gaussian_model):
  """A network that always sees the same grey: x <- (1 - mix) * grey + mix * x, three times."""
  model = gaussian_model._replace(
    schedule=gaussian_model.schedule._replace(prediction_type="sample"),
    apply=lambda p, x, t, cond=None, keys=None: jnp.full_like(x, -0.4),  # 0.3 in [0, 1].
  )
  options = {"timestep": 4, "num_iterations": 3, "mix": 0.25}
  images = to_float(photograph(2, 20, 13))
  got = apply(purifiers.build("gridpure", model, options), images)
  np.testing.assert_allclose(got, 0.25**3 * images + (1 - 0.25**3) * 0.3, atol=1e-5)


def test_diffpure_pulls_towards_what_the_model_knows(gaussian_model):
  target = 0.2 * jnp.ones((8, 8, 3))
  params = {"mean": 2 * target - 1, "log_spread": jnp.full((3,), -3.0)}
  images = jnp.clip(target + 0.1 * jax.random.normal(jax.random.key(1), (6, 8, 8, 3)), 0, 1)
  distances = []
  for timestep in (1, 10, 40):
    purifier = purifiers.build("diffpure", gaussian_model, {"timestep": timestep})
    got = jax.jit(purifier.apply)(params, KEYS, images)
    distances.append(float(jnp.abs(got - target).mean()))
  assert distances[0] > distances[1] > distances[2]
  assert distances[2] < 0.25 * float(jnp.abs(images - target).mean())


def test_diffpure_with_a_network(tiny_model):
  purifier = purifiers.build("diffpure", tiny_model.model, {"timestep": 3})
  images = to_float(photograph(2, 8, 8))
  got = jax.jit(purifier.apply)(tiny_model.params, KEYS[:2], images)
  assert got.shape == images.shape and np.isfinite(got).all()


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("diffpure", {"timestep": 51}, "timestep must be 1 to 50, got 51"),
    ("diffpure", {"timestep": 5, "variance": "learned"}, "variance 'learned' is not one of"),
    ("gridpure", {"mix": 1.0}, "mix in"),
    ("gridpure", {"stride": 9}, "stride must be 0 to 8"),
    ("jpeg", {"quality": 0}, "quality must be 1 to 100"),
    ("jpeg", {"codec": "png"}, "codec 'png' is not one of"),
    ("jpeg", {"quality": 1e9}, "quality must be a whole number, or a list of them, 1 to 100, got"),
    ("jpeg", {"quality": (5, 101)}, r"quality must be 1 to 100, got \(5, 101\)"),
    ("jpeg", {"quality": ()}, "quality must be a whole number, or a list"),
    ("jpeg", {"codec": 3}, "codec must be a word, got 3"),
    ("jpeg", {"chroma_subsampling": "yes"}, "chroma_subsampling must be true or false, got 'yes'"),
    ("gaussian_noise", {"std": float("nan")}, "std must be a number, 0 to 10, got nan"),
    ("gaussian_noise", {"std_255": True}, "std_255 must be a number"),
    ("gaussian_blur", {"sigma": 0}, "sigma must be above 0 and at most 100, got 0"),
    ("gaussian_blur", {"kernel_size": 4}, "kernel_size must be odd or 0, got 4"),
    ("bilateral", {"diameter": 4}, "diameter must be odd, 1 to 255, got 4"),
    ("total_variation", {"num_steps": 2.5}, "num_steps must be a whole number, 1 to 1e"),
    ("chain", {"methods": [{"name": "bilateral", "num_passes": -1}]}, "bilateral: num_passes must"),
    ("chain", {"methods": {"name": "jpeg"}}, "methods must be a list of objects"),
    ("resize", {"factor": 1.0}, "factor must be in"),
    ("resize", {"method": "area"}, "method 'area' is not one of"),
    ("chain", {"methods": []}, "at least one method"),
    ("chain", {"methods": [{"quality": 3}]}, "needs a name"),
    ("chain", {}, r"needs the option\(s\) methods"),
    ("impress", {"num_steps": 0}, "num_steps must be 1 to"),
    ("impress", {"perceptual": "eyes"}, "unknown perceptual distance 'eyes'"),
  ],
)
def test_bad_options(name, options, message, latent_model, gaussian_model):
  model = latent_model if name == "impress" else gaussian_model
  with pytest.raises(ConfigError, match=message):
    purifiers.build(name, model, options)


def test_diffpure_names_the_way_out_for_other_sizes(gaussian_model):
  purifier = purifiers.build("diffpure", gaussian_model, {"timestep": 2})
  with pytest.raises(ConfigError, match="24x30 do not fit diffpure .* 8x8: .*gridpure"):
    purifier.apply(purifier.init(KEYS[0]), KEYS[:1], to_float(photograph(1)))


def test_total_variation_fills_dropped_pixels_in():
  """A flat picture stays flat, whichever pixels were left out."""
  images = jnp.full((2, 16, 16, 3), 0.4)
  purifier = purifiers.build("total_variation", None, {"drop_rate": 0.3})
  np.testing.assert_allclose(apply(purifier, images), images, atol=1e-5)


def test_levels_become_the_unit_scale():
  """An option that ends in _255 is in 8-bit levels."""
  images = jnp.full((6, 32, 32, 3), 0.5)
  noisy = apply(purifiers.build("gaussian_noise", None, {"std_255": 5.1}), images)
  assert np.std(noisy) == pytest.approx(0.02, rel=0.02)


def test_chain_is_the_composition():
  images = to_float(photograph())
  methods = [{"name": "gaussian_blur", "sigma": 0.8}, {"name": "jpeg", "quality": 40}]
  chained = apply(purifiers.build("chain", None, {"methods": methods}), images)
  blurred = apply(purifiers.build("gaussian_blur", None, {"sigma": 0.8}), images)
  expected = apply(purifiers.build("jpeg", None, {"quality": 40}), blurred)
  np.testing.assert_array_equal(chained, expected)


def test_vae_roundtrip_is_the_autoencoder(tiny_pipeline):
  """The posterior mean, decoded; other sizes are mirrored up to whole latents and cropped."""
  vae = AutoencoderKL(tiny_pipeline.configs["vae"])
  variables = {"params": tiny_pipeline.params["vae"]}
  images = to_float(photograph(2, 13, 11))
  got = apply_with(purifiers.build("vae_roundtrip", tiny_pipeline.model, {}), tiny_pipeline, images)
  whole = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), "symmetric")

  @jax.jit
  def through(x):
    mean, _ = vae.apply(variables, x, method="encode")
    return vae.apply(variables, mean, method="decode")

  expected = np.clip(0.5 * through(2 * whole - 1) + 0.5, 0, 1)
  np.testing.assert_allclose(got, expected[:, :13, :11], atol=1e-5)


def apply_with(purifier, pipeline, images):
  params = purifier.init(KEYS[0], pipeline.params)
  return np.asarray(jax.jit(purifier.apply)(params, KEYS[: len(images)], images))


def test_gridpure_passes_its_conditioning_on(gaussian_model):
  """A network that returns the grey it is told of."""
  model = gaussian_model._replace(
    schedule=gaussian_model.schedule._replace(prediction_type="sample"),
    apply=lambda p, x, t, cond=None, keys=None: jnp.broadcast_to(cond[:1, :1, None], x.shape),
  )
  options = {"timestep": 2, "num_iterations": 1, "mix": 0.0, "cond": jnp.full((1, 1), -0.4)}
  got = apply(purifiers.build("gridpure", model, options), to_float(photograph(2, 12, 10)))
  np.testing.assert_allclose(got, 0.3, atol=1e-5)


@pytest.mark.slow
def test_gridpure_on_latents(tiny_pipeline):
  """Windows of a latent model with its conditioning; what it draws is the picture's own."""
  cond = tiny_pipeline.model.embed(tiny_pipeline.params, tiny_pipeline.tokenizer([""]))
  options = {"timestep": 2, "num_iterations": 1, "cond": cond}
  purifier = purifiers.build("gridpure", tiny_pipeline.model, options)
  images = to_float(photograph(2, 16, 20))
  got = apply_with(purifier, tiny_pipeline, images)
  assert got.shape == images.shape and np.isfinite(got).all()
  assert np.abs(got - images).mean() > 1e-3
