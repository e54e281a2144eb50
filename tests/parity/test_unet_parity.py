"""Our U-Net and its files against PyTorch diffusers' `UNet2DModel`, live."""

from __future__ import annotations

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from make_goldens import CIFAR10, SMALL, SMALL_CIFAR_LIKE, SMALL_DEFAULTS, randomize

from udp_jax.errors import MissingDataError
from udp_jax.models import weights
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.ops import schedules

TOLERANCE = 1e-4  # Largest absolute error over the largest magnitude.

THREE_LEVELS = {
  "sample_size": 20,  # Not a multiple of Winograd's tile at the lower levels.
  "in_channels": 4,
  "out_channels": 2,
  "block_out_channels": (24, 48, 24),
  "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
  "layers_per_block": 2,
  "norm_num_groups": 6,
  "attention_head_dim": 12,
  "norm_eps": 1e-4,
}
# As ADM's networks are, but for the numbers.
SCALE_SHIFT = {
  "sample_size": 16,
  "in_channels": 3,
  "out_channels": 6,
  "block_out_channels": (16, 32, 32),
  "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "attn_norm_num_groups": 8,
  "attention_head_dim": 16,
  "resnet_time_scale_shift": "scale_shift",
  "downsample_type": "resnet",
  "upsample_type": "resnet",
}
CASES = {
  "cifar10": CIFAR10,
  "small_cifar_like": SMALL_CIFAR_LIKE,
  "small_defaults": SMALL_DEFAULTS,
  # One channel a group at the first level; more heads; the other ways to pad and to embed time.
  "small_groups": SMALL | {"norm_num_groups": 8, "attention_head_dim": 4, "downsample_padding": 0},
  "no_mid_attention": SMALL | {"add_attention": False, "freq_shift": 1, "layers_per_block": 3},
  "three_levels": THREE_LEVELS,
  "scale_shift": SCALE_SHIFT,
}
CONV_METHODS = ("xla", "direct", "winograd")


def relative_error(actual, expected) -> float:
  return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


def theirs(fields, seed=0):
  torch.manual_seed(0)
  model = diffusers.UNet2DModel(**fields).eval()
  randomize(model, seed)
  return model


def ours(fields, tensors):
  """Config and params from a diffusers config and state dict."""
  config = UNet2DConfig.from_dict(fields)
  x_t = jax.ShapeDtypeStruct(
    (1, config.sample_size, config.sample_size, config.in_channels), jnp.float32
  )
  timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
  template = jax.eval_shape(UNet2D(config).init, jax.random.key(0), x_t, timesteps)["params"]
  return config, weights.from_torch_names(tensors, template)


def state(model):
  return {name: value.numpy() for name, value in model.state_dict().items()}


def nchw(array):
  return torch.from_numpy(np.ascontiguousarray(np.transpose(array, (0, 3, 1, 2))))


def nhwc(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def inputs(config, batch=2, seed=0):
  generator = np.random.default_rng(seed)
  size = (batch, config.sample_size, config.sample_size)
  x_t = generator.normal(size=(*size, config.in_channels)).astype(np.float32)
  cotangent = generator.normal(size=(*size, config.out_channels)).astype(np.float32)
  return x_t, cotangent, generator.integers(0, 1000, batch)


def compare(case, conv_method, with_param_gradients):
  model = theirs(CASES[case])
  config, params = ours(dict(model.config), state(model))
  x_t, cotangent, timesteps = inputs(config)

  x_torch = nchw(x_t).requires_grad_()
  model.requires_grad_(with_param_gradients)
  expected = model(x_torch, torch.from_numpy(timesteps)).sample
  (expected * nchw(cotangent)).sum().backward()

  unet = UNet2D(config, conv_method=conv_method)
  argnums = (0, 1) if with_param_gradients else 1

  @jax.jit
  def forward_backward(params, x_t):
    def objective(params, x_t):
      output = unet.apply({"params": params}, x_t, timesteps)
      return (output * cotangent).sum(), output

    return jax.value_and_grad(objective, argnums, has_aux=True)(params, x_t)

  (_, output), gradients = forward_backward(params, x_t)
  gradient_x = gradients[1] if with_param_gradients else gradients
  errors = {
    "output": relative_error(output, nhwc(expected)),
    "input gradient": relative_error(gradient_x, nhwc(x_torch.grad)),
  }
  if with_param_gradients:
    reference = {name: value.grad.numpy() for name, value in model.named_parameters()}
    largest = max(np.abs(value).max() for value in reference.values())
    for name, value in weights.to_torch_names(gradients[0]).items():
      # Some are zero but for rounding (a bias of the keys, a bias before a norm of one channel a
      # group): judge those by the largest.
      scale = max(np.abs(reference[name]).max(), 1e-2 * largest)
      errors[f"gradient of {name}"] = float(np.abs(value - reference[name]).max() / scale)
  worst = sorted(errors.items(), key=lambda item: -item[1])[:3]
  print(
    f"\n{case} {conv_method}: output {errors['output']:.1e}, input gradient"
    f" {errors['input gradient']:.1e}, worst {worst[0][0]} {worst[0][1]:.1e}"
  )
  assert worst[0][1] < TOLERANCE, worst


@pytest.mark.parametrize("case", sorted(set(CASES) - {"cifar10", "three_levels"}))
def test_forward_and_every_gradient(case):
  compare(case, None, with_param_gradients=True)


@pytest.mark.parametrize("conv_method", CONV_METHODS)
def test_three_levels_with_every_convolution(conv_method):
  compare("three_levels", conv_method, with_param_gradients=True)


@pytest.mark.parametrize("conv_method", ["winograd", "direct"])
def test_cifar10_forward_and_input_gradient(conv_method):
  compare("cifar10", conv_method, with_param_gradients=False)


@pytest.mark.parametrize("case", ["cifar10", "small_defaults", "three_levels"])
def test_files_of_each_open_in_the_other(case, tmp_path):
  fields = CASES[case]
  config = UNet2DConfig.from_dict(fields)
  generator = np.random.default_rng(1)
  _, params = ours(fields, state(theirs(fields)))
  params = jax.tree.map(lambda p: generator.normal(size=p.shape).astype(np.float32) * 0.1, params)

  weights.save_pretrained(tmp_path / "ours", config.to_dict(), params)
  model, report = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(report.values()), report
  expected_fields = dict(diffusers.UNet2DModel(**fields).config)
  for name in ("_use_default_values", "_name_or_path", "dropout"):
    expected_fields.pop(name, None)
  for name, value in expected_fields.items():
    actual = model.config[name]
    assert (tuple(actual) if isinstance(actual, list) else actual) == value, name

  x_t, _, timesteps = inputs(config)
  with torch.no_grad():
    expected = nhwc(model.eval()(nchw(x_t), torch.from_numpy(timesteps)).sample)
  output = jax.jit(UNet2D(config).apply)({"params": params}, x_t, timesteps)
  assert relative_error(output, expected) < TOLERANCE

  model.save_pretrained(tmp_path / "theirs")
  loaded, tensors = weights.load_pretrained(tmp_path / "theirs", class_name="UNet2DModel")
  back_config, back = ours(loaded, tensors)
  assert back_config == config
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_every_way_diffusers_saves(options, variant, tmp_path):
  model = theirs(SMALL)
  expected = state(model)
  (model.half() if variant else model).save_pretrained(tmp_path, variant=variant, **options)
  fields, tensors = weights.load_pretrained(tmp_path, variant=variant)
  _, params = ours(fields, tensors)
  for name, value in weights.to_torch_names(params).items():
    np.testing.assert_array_equal(value, expected[name])


def test_pickled_weights_can_be_converted_as_the_message_says(tmp_path):
  model = theirs(SMALL)
  model.save_pretrained(tmp_path, safe_serialization=False)
  with pytest.raises(
    MissingDataError, match=r"from_pretrained\(folder\).*save_pretrained\(folder\)"
  ):
    weights.load_pretrained(tmp_path)
  diffusers.UNet2DModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
  _, tensors = weights.load_pretrained(tmp_path)
  np.testing.assert_array_equal(tensors["conv_in.weight"], state(model)["conv_in.weight"])


@pytest.mark.parametrize(
  "schedule",
  [
    schedules.linear(100),
    schedules.cosine(prediction_type="v_prediction"),
    schedules.scaled_linear(),
  ],
)
def test_our_folder_opens_as_a_pipeline(schedule, tmp_path):
  config, params = ours(SMALL, state(theirs(SMALL)))
  fields = weights.scheduler_config(schedule)
  weights.save_pipeline(tmp_path, config.to_dict(), params, fields)
  pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
  np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-4)
  assert pipeline.scheduler.config.prediction_type == schedule.prediction_type
  for name, value in weights.to_torch_names(params).items():
    np.testing.assert_array_equal(pipeline.unet.state_dict()[name], value)
  pipeline.set_progress_bar_config(disable=True)
  images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
  assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()

  pipeline.save_pretrained(tmp_path / "again")
  again = weights.schedule_from_config(weights.load_scheduler_config(tmp_path / "again"))
  assert again.prediction_type == schedule.prediction_type
  np.testing.assert_array_equal(again.alphas_cumprod, schedule.alphas_cumprod)
