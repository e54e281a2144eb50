"""Latent diffusion (Rombach et al. 2022, arXiv:2112.10752) as a `DiffusionModel`.

The parts are modules with the interfaces of `sd_unet.UNet2DCondition`, `sd_vae.AutoencoderKL` and
`clip_text.CLIPText`. Their parameters form one dictionary, {"unet", "vae", "text_encoder"} and, for
Stable Diffusion XL, "text_encoder_2", so that a part can be trained, frozen, cast or saved alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import conditioning
from udp_jax.models.base import Cond, DiffusionModel, Held, Params
from udp_jax.ops import conv
from udp_jax.ops.image import from_model_range, to_model_range
from udp_jax.ops.keys import normal_each
from udp_jax.ops.schedules import NoiseSchedule

UNET, VAE, TEXT, TEXT_2 = "unet", "vae", "text_encoder", "text_encoder_2"


class InpaintCond(TypedDict):
  """The conditioning of a U-Net with 9 input channels (inpainting).

  Attributes:
    text: embeddings (B, L, D), as `DiffusionModel.embed` returns them, or token ids (B, L).
    mask: (B, h, w, 1), 1 where the picture is regenerated.
    masked_latents: (B, h, w, 4), `encode` of the picture with that region grey (0 in [-1, 1]).
  """

  text: jax.Array
  mask: jax.Array
  masked_latents: jax.Array


def latent_diffusion(
  unet: nn.Module,
  vae: nn.Module,
  text: nn.Module | None,
  schedule: NoiseSchedule,
  *,
  image_size: int | tuple[int, int],
  text_2: nn.Module | None = None,
  deterministic: bool = False,
  vae_slices: int = 1,
) -> DiffusionModel:
  """Builds a diffusion model on a VAE's latents: x0 = latents * scaling_factor.

  `params` = {"unet": ..., "vae": ..., "text_encoder": ...}; the last part exists only with `text`.
  `encode` draws from the VAE's posterior, with one key per picture; gradients flow through the draw
  to the pictures (its noise is constant). `apply` takes `cond` as embeddings (B, L, D), as integer
  token ids (B, L), which it embeds, or for inpainting U-Nets as an `InpaintCond`.

  Of Stable Diffusion XL, embeddings are those of both encoders with the pooled text and the sizes,
  joined by `conditioning.pack`. A picture counts as shown as a whole, at the size at hand, unless
  `conditioning.with_sizes` says otherwise. The empty prompt is embedded like any other, as with
  negative_prompt="" in diffusers, which without a negative prompt takes zeros.

  Args:
    unet: (x_t, timesteps, cond, added=None, seeds=None) -> prediction.
    vae: `encode` -> (mean, logvar), `decode`.
    text: token ids -> embeddings; None if `cond` comes from elsewhere.
    text_2: token ids -> (embeddings, pooled), XL's second encoder; None for other models. Its ids
      are the first one's, with the padding that its config names.
    schedule: the noise schedule.
    image_size: side of the sampled pictures, or (height, width), pixels. `encode` and `apply` take
      any size that the VAE and the U-Net can halve; `hold` prepares filters for this size.
    deterministic: whether `encode` returns the posterior mean and draws nothing.
    vae_slices: maximum number of equal slices of a batch that pass the VAE one by one and are
      recomputed for the gradient; memory is that of one slice. Results do not change.

  Raises:
    ConfigError: the sizes of the U-Net or the text encoder do not fit, or the image size is not a
      multiple of the VAE's factor.
  """
  vae_config: Any = vae.config
  unet_config: Any = unet.config
  height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
  downscale, channels = vae_config.downscale, vae_config.latent_channels
  if height % downscale or width % downscale:
    raise ConfigError(f"image size {height}x{width} is not a multiple of {downscale}")
  _check_parts(unet_config, vae_config, text, text_2)
  shape = (height // downscale, width // downscale, channels)
  levels = len(unet_config.block_out_channels)
  pooled_dim = getattr(unet_config, "pooled_dim", 0)
  told: dict[str, Any] = {"cond": jnp.zeros((1, 1, unet_config.cross_attention_dim))}
  if pooled_dim:
    told["added"] = jnp.zeros((1, pooled_dim)), jnp.zeros((1, conditioning.NUM_SIZES))

  def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, 3)
    # The inputs have the smallest size, because parameters do not depend on it.
    x_t = jnp.zeros((1, 2**levels, 2**levels, unet_config.in_channels))
    params = {
      UNET: unet.init(keys[0], x_t, jnp.zeros((1,), jnp.int32), **told)["params"],
      VAE: vae.init(keys[1], jnp.zeros((1, 2 * downscale, 2 * downscale, 3)))["params"],
    }
    if text is not None:
      params[TEXT] = text.init(keys[2], jnp.zeros((1, 1), jnp.int32))["params"]
    if text_2 is not None:
      key_2 = jax.random.fold_in(keys[2], 2)
      params[TEXT_2] = text_2.init(key_2, jnp.zeros((1, 1), jnp.int32))["params"]
    return params

  def moments(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    def of_slice(images: jax.Array) -> tuple[jax.Array, jax.Array]:
      return vae.apply(_variables(params, VAE), to_model_range(images), method="encode")  # type: ignore[return-value]

    return _sliced(of_slice, images, vae_slices)

  def posterior(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, logvar = moments(params, images)
    return mean * vae_config.scaling_factor, logvar + 2.0 * math.log(vae_config.scaling_factor)

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    mean, logvar = moments(params, images)
    if not deterministic and keys is not None:
      mean = mean + jnp.exp(0.5 * logvar) * normal_each(keys, mean.shape[1:])
    return mean * vae_config.scaling_factor

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    def pictures(latents: jax.Array) -> jax.Array:
      return vae.apply(_variables(params, VAE), latents, method="decode")  # type: ignore[return-value]

    return from_model_range(
      _sliced(pictures, x0 / vae_config.scaling_factor, vae_slices), clip=clip
    )

  def reconstruct(params: Params, images: jax.Array) -> jax.Array:
    def round_trip(images: jax.Array) -> jax.Array:
      return vae.apply(_variables(params, VAE), to_model_range(images))  # type: ignore[return-value]

    return from_model_range(_sliced(round_trip, images, vae_slices))

  def embed(params: Params, token_ids: jax.Array) -> jax.Array:
    if text is None:
      raise ConfigError("this model has no text encoder: give embeddings, not token ids")
    states = jnp.asarray(text.apply(_variables(params, TEXT), token_ids))
    if text_2 is None:
      return states
    module: Any = text_2
    ids = _padded_for(module.config, token_ids)
    second, pooled = module.apply(_variables(params, TEXT_2), ids)
    return conditioning.pack(jnp.concatenate([states, second], axis=-1), pooled)

  def apply(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None, keys=None
  ) -> jax.Array:
    if isinstance(cond, dict):
      x_t = jnp.concatenate([x_t, cond["mask"], cond["masked_latents"]], axis=-1)
      cond = cond["text"]
    if cond is None:
      raise ConfigError("this model is conditioned: give text embeddings or token ids")
    if x_t.shape[-1] != unet_config.in_channels:
      raise ConfigError(
        f"the U-Net takes {unet_config.in_channels} channels and was given {x_t.shape[-1]}"
        + ("; it is an inpainting model, see InpaintCond" if unet_config.in_channels == 9 else "")
      )
    if jnp.issubdtype(cond.dtype, jnp.integer):
      cond = embed(params, cond)
    seeds = None
    if keys is not None and getattr(unet_config, "dropout", 0.0) > 0:
      seeds = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    added: dict[str, Any] = {}
    if pooled_dim:
      cond, pooled, sizes = conditioning.unpack(cond, pooled_dim)
      size = x_t.shape[1] * downscale, x_t.shape[2] * downscale
      added["added"] = pooled, conditioning.resolved(sizes, *size)
    return jnp.asarray(
      unet.apply(_variables(params, UNET), x_t, timesteps, cond, seeds=seeds, **added)
    )

  # Jitted: the networks run only to find each layer's sizes; compilation drops their outputs.
  @jax.jit
  def prepare(params: Params) -> Any:
    x_t, timesteps = jnp.zeros((1, *shape[:2], unet_config.in_channels)), jnp.zeros((1,), jnp.int32)
    images = jnp.zeros((1, height, width, 3))
    _, made = unet.apply({"params": params[UNET]}, x_t, timesteps, **told, mutable=["prepared"])
    variables = {"params": params[VAE]}
    # Prepare encoder and decoder; compilation removes what a program does not use.
    _, made_vae = vae.apply(variables, images, mutable=["prepared"])
    return {UNET: made.get("prepared", {}), VAE: made_vae.get("prepared", {})}

  def hold(params: Params) -> Params:
    if isinstance(params, Held):
      return params
    cast = {name: _cast(part, _dtype_of(name)) for name, part in params.items()}
    holds = conv.holds(method=getattr(unet, "conv_method", None))
    return Held(cast, prepare(cast) if holds else {})

  def _dtype_of(name: str) -> Any:
    module: Any = {UNET: unet, VAE: vae, TEXT: text, TEXT_2: text_2}[name]
    return module.dtype

  embed_function = embed if text is not None else None
  image_shape = (height, width, 3)
  model = DiffusionModel(
    init, encode, apply, decode, embed_function, schedule, shape, image_shape, hold, reconstruct
  )
  return model._replace(posterior=posterior)


def cast_parts(
  params: Params, dtype: Any, *, parts: tuple[str, ...] = (VAE, TEXT, TEXT_2)
) -> Params:
  """Casts the matrices and filters of `parts` to `dtype`; other parts are unchanged.

  Use it for parts that are not trained: bfloat16 halves their memory, and changes no result if the
  computation is in bfloat16. Vectors (biases, norm scales) keep their dtype.
  """
  return {name: _cast(part, dtype) if name in parts else part for name, part in params.items()}


def _cast(tree: Any, dtype: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, tree)


def _variables(params: Params, part: str) -> dict[str, Any]:
  """Returns the variables of one part, with prepared filters if the parameters are held."""
  if isinstance(params, Held):
    return {"params": params.params[part], "prepared": params.prepared.get(part, {})}
  return {"params": params[part]}


def _sliced(function: Callable[[jax.Array], Any], batch: jax.Array, slices: int) -> Any:
  """Applies `function` to (B, ...) slice by slice; slices are as equal as B's divisors allow."""
  size = batch.shape[0]
  count = max(n for n in range(1, max(1, min(slices, size)) + 1) if size % n == 0)
  if count == 1:
    return function(batch)
  # A slice takes every count-th picture, so that each device contributes an equal share.
  stacked = batch.reshape(size // count, count, *batch.shape[1:]).swapaxes(0, 1)
  out = jax.lax.map(jax.checkpoint(function), stacked)
  return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(size, *leaf.shape[2:]), out)


def _padded_for(config: Any, token_ids: jax.Array) -> jax.Array:
  """Token ids (B, L) of the first encoder's tokenizer with the second one's padding after the end.

  Both tokenizers have one vocabulary (`pipeline` checks it), whose largest id is the end token.
  """
  end = jnp.argmax(token_ids, axis=1)[:, None]
  return jnp.where(jnp.arange(token_ids.shape[1]) > end, config.pad_token_id, token_ids)


def _check_parts(unet: Any, vae: Any, text: nn.Module | None, text_2: nn.Module | None) -> None:
  """Raises ConfigError if the parts belong to different models."""
  channels = vae.latent_channels
  if unet.out_channels != channels or unet.in_channels not in (channels, 2 * channels + 1):
    raise ConfigError(
      f"the U-Net (in_channels={unet.in_channels}, out_channels={unet.out_channels}) and the VAE "
      f"(latent_channels={channels}) do not belong together"
    )
  pooled_dim = getattr(unet, "pooled_dim", 0)
  if bool(pooled_dim) != (text_2 is not None) and (text is not None or text_2 is not None):
    raise ConfigError(
      "only the U-Net of Stable Diffusion XL takes a pooled text (addition_embed_type), and only "
      "with a second text encoder (text_encoder_2)"
    )
  if text is None:
    if text_2 is not None:
      raise ConfigError("a second text encoder without a first one: XL's refiner is not supported")
    return
  width: int = text.config.hidden_size
  if text_2 is not None:
    width += text_2.config.hidden_size
    if text_2.config.projection_dim != pooled_dim:
      raise ConfigError(
        f"the U-Net takes a pooled text of {pooled_dim} values, the second text encoder makes "
        f"{text_2.config.projection_dim}"
      )
  if width != unet.cross_attention_dim:
    raise ConfigError(
      f"the U-Net takes text embeddings of {unet.cross_attention_dim} values, the text encoder "
      f"makes {width}"
    )
