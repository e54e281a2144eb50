"""The trained part of a model: theta, kept apart from the frozen parameters.

A `Trainable` is a pair of pure functions: `init` extracts theta from the parameters (or creates
it), `merge` puts it back. Training, checkpoints and saving handle theta alone. The frozen
parameters stay an argument in their own dtype, and `jax.grad` of a loss of `merge(theta, params)`
with respect to theta computes no gradient of other weights.

theta is always float32, whatever the dtype of the parameters, so that small steps accumulate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import lora as low_rank
from udp_jax.models.base import Params

Theta = Any

TOKEN_EMBEDDING = ("text_encoder", "text_model", "embeddings", "token_embedding", "embedding")
_UNET = "unet"
_TEXT_ENCODER = "text_encoder"
_SECOND_TEXT_ENCODER = "text_encoder_2"


class Trainable(NamedTuple):
  """Extracts the trained parameters of a model, and merges them back.

  Attributes:
    init: (key, params) -> theta, new float32 arrays that a caller may donate. `params` may be
      `jax.ShapeDtypeStruct`s inside `jax.eval_shape`.
    merge: (theta, params) -> params with theta merged in; pure, and differentiable in theta.
  """

  init: Callable[[jax.Array, Params], Theta]
  merge: Callable[[Theta, Params], Params]


def whole() -> Trainable:
  """Trains all parameters."""
  return part()


def part(*path: str) -> Trainable:
  """Trains the subtree at `path`, such as `part("unet")` or `part("unet", "mid_block")`.

  Raises:
    ConfigError: raised by `init` and `merge` if the parameters have no such part.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # No random draw is needed.
    return jax.tree.map(_master, _at(params, path))

  def merge(theta: Theta, params: Params) -> Params:
    _at(params, path)
    return _replaced(params, path, theta)

  return Trainable(init, merge)


def denoiser() -> Trainable:
  """Trains the U-Net of a latent model, or all parameters of a pixel model.

  The denoising loss must not train a latent model's VAE, which could shrink the latents to zero.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    return (part(_UNET) if _has_parts(params) else whole()).init(key, params)

  def merge(theta: Theta, params: Params | None) -> Params:
    return {**params, _UNET: theta} if params is not None and _has_parts(params) else theta

  return Trainable(init, merge)


def by_name(name: str, *, rank: int = 4) -> Trainable:
  """Returns the config's choice of "denoiser", "lora" (with `rank`) or "cross_attention".

  Raises:
    ConfigError: the name is unknown.
  """
  match name:
    case "denoiser":
      return denoiser()
    case "lora":
      return lora(rank)
    case "cross_attention":
      return cross_attention_kv()
  raise ConfigError(f"unknown part {name!r} to train; known: denoiser, lora, cross_attention")


def cross_attention_kv() -> Trainable:
  """Trains keys and values of the U-Net's cross-attention (attn2), as in Custom Diffusion.

  These are the only weights that see the text (Kumari et al., arXiv:2212.04488, section 3).

  Raises:
    ConfigError: raised by `init` if the U-Net has no cross-attention.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # No random draw is needed.
    unet = _at(params, (_UNET,))
    chosen = _select(
      unet, lambda path: "attn2" in path and path[-2] in ("to_k", "to_v") and path[-1] == "kernel"
    )
    if not chosen:
      raise ConfigError("this U-Net has no cross-attention (attn2), so no keys and values of it")
    return {_UNET: jax.tree.map(_master, chosen)}

  return Trainable(init, _overlaid)


def lora(
  rank: int,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  *,
  text_encoder_targets: Sequence[str] = (),
) -> Trainable:
  """Trains low-rank updates of dense and convolution kernels (Hu et al., arXiv:2106.09685).

  theta holds lora_A and lora_B for every module named in `targets`; `merge` computes
  kernel + scale * lora_A @ lora_B. lora_B starts at zero, so the model is unchanged at first.

  Args:
    rank: rank of the updates, at least 1.
    scale: factor of the updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules, such as "to_q"; the default is that of diffusers'
      training scripts.
    text_encoder_targets: names of the text encoder's modules, such as `lora.TEXT_ENCODER_TARGETS`;
      empty leaves the text encoder unchanged.

  Raises:
    ConfigError: the rank is below 1, there are no targets, or `init` does not find a target.
  """
  chosen = {_UNET: tuple(targets), _TEXT_ENCODER: tuple(text_encoder_targets)}
  chosen = {name: names for name, names in chosen.items() if names}
  if rank < 1:
    raise ConfigError(f"the rank of a LoRA is at least 1, not {rank}")
  if not chosen:
    raise ConfigError("a LoRA needs the names of the modules that it changes (targets)")

  def init(key: jax.Array, params: Params) -> Theta:
    keys = jax.random.split(key, len(chosen))
    return {
      name: low_rank.init_factors(one, _at(params, (name,)), rank=rank, targets=names)
      for one, (name, names) in zip(keys, chosen.items(), strict=True)
    }

  def merge(theta: Theta, params: Params) -> Params:
    return low_rank.merge_factors(theta, params, scale=scale)

  return Trainable(init, merge)


def token_embedding(token_ids: Sequence[int], init_from: Sequence[int] | int) -> Trainable:
  """Trains rows of the token embedding (textual inversion, Gal et al., arXiv:2208.01618).

  theta is (N, D). Ids beyond the end of the table extend it; they must be the next free ones, as
  `Tokenizer.add_token` gives them.

  Args:
    token_ids: ids of the N learned tokens, from the tokenizer.
    init_from: ids of the tokens whose rows theta starts from: N of them, or one for all.

  Raises:
    ConfigError: there is no token, the numbers differ, or (`init`, `merge`) ids leave a gap.
  """
  ids = tuple(int(i) for i in token_ids)
  starts = (init_from,) * len(ids) if isinstance(init_from, int) else tuple(init_from)
  starts = starts * len(ids) if len(starts) == 1 else starts
  if not ids or len(set(ids)) != len(ids) or len(starts) != len(ids):
    raise ConfigError(
      f"learning tokens {ids} from the rows of {starts}: each needs one row to start from"
    )

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # No random draw is needed.
    table = _at(params, TOKEN_EMBEDDING)
    if max(starts) >= table.shape[0]:
      raise ConfigError(f"token {max(starts)} has no embedding: the table has {table.shape[0]}")
    return jnp.asarray(table)[jnp.asarray(starts)].astype(jnp.float32)

  def merge(theta: Theta, params: Params) -> Params:
    table = _at(params, TOKEN_EMBEDDING)
    size = table.shape[0]
    new = sorted(i for i in ids if i >= size)
    if new != list(range(size, size + len(new))):
      raise ConfigError(f"tokens {new} do not follow on the table's {size}")
    table = jnp.asarray(table)
    if new:
      room = jnp.zeros((len(new), table.shape[1]), table.dtype)
      table = jnp.concatenate([table, room])
    # Use theta's float32: a frozen bfloat16 table would round small steps away.
    table = table.astype(jnp.promote_types(table.dtype, theta.dtype))
    return _replaced(params, TOKEN_EMBEDDING, table.at[jnp.asarray(ids)].set(theta))

  return Trainable(init, merge)


def token_table(params: Params) -> jax.Array:
  """Returns the text encoder's token embeddings (V, D) from the parameters."""
  return _at(params, TOKEN_EMBEDDING)


def joined(*parts: Trainable) -> Trainable:
  """Trains several parts at once: theta is the tuple of theirs; later parts win on overlap."""

  def init(key: jax.Array, params: Params) -> Theta:
    keys = jax.random.split(key, len(parts))
    return tuple(one.init(k, params) for one, k in zip(parts, keys, strict=True))

  def merge(theta: Theta, params: Params) -> Params:
    for one, its in zip(parts, theta, strict=True):
      params = one.merge(its, params)
    return params

  return Trainable(init, merge)


def _master(leaf: Any) -> Any:
  """Copies an array as float32, so that a caller may donate it while the parameters stay valid."""
  wide = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape, wide)
  return jnp.array(leaf, wide, copy=True)


def _has_parts(params: Params) -> bool:
  return isinstance(params, dict) and _UNET in params


def _at(params: Params, path: Sequence[str]) -> Any:
  if (
    path
    and path[0] == _TEXT_ENCODER
    and isinstance(params, dict)
    and _SECOND_TEXT_ENCODER in params
  ):
    raise ConfigError(
      "Stable Diffusion XL has two text encoders, and training them or their tokens is not "
      "supported: train the U-Net alone"
    )
  for depth, name in enumerate(path):
    if not isinstance(params, dict) or name not in params:
      have = ", ".join(sorted(params)) if isinstance(params, dict) else "nothing"
      where = "/".join(path[:depth]) or "this model"
      raise ConfigError(f"no part {'/'.join(path)} to train: {where} has {have}")
    params = params[name]
  return params


def _replaced(params: Params, path: Sequence[str], value: Any) -> Any:
  if not path:
    return value
  return {**params, path[0]: _replaced(params[path[0]], path[1:], value)}


def _select(params: Params, wanted: Callable[[tuple[str, ...]], bool], path=()) -> dict[str, Any]:
  """Returns the leaves whose path is wanted, nested as in `params`."""
  found: dict[str, Any] = {}
  for name, value in params.items():
    here = (*path, name)
    if isinstance(value, dict):
      if inner := _select(value, wanted, here):
        found[name] = inner
    elif wanted(here):
      found[name] = value
  return found


def _overlaid(theta: Theta, params: Params) -> Params:
  """Replaces those leaves of `params` that theta also has."""
  if not isinstance(theta, dict):
    return theta
  return {**params, **{name: _overlaid(value, params[name]) for name, value in theta.items()}}
