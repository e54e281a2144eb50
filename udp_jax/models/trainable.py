"""What of a model is trained: theta, apart from the parameters that stay as they are.

A `Trainable` is a pair of pure functions. `init` takes theta out of the parameters (or makes it for
them), `merge` puts it back. Everything that trains, checkpoints or saves handles theta alone; the
frozen parameters stay an argument, in whatever dtype they are held, and `jax.grad` of a loss of
`merge(theta, params)` with respect to theta computes no other weight's gradient.

theta is always float32, whatever the dtype of the parameters, so that small steps add up.
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


class Trainable(NamedTuple):
  """Theta of a model, in and out.

  Attributes:
    init: (key, params) -> theta, float32 arrays of their own (a caller may donate them). `params`
      may be `jax.ShapeDtypeStruct`s inside `jax.eval_shape`, as everywhere.
    merge: (theta, params) -> params with theta in its place; pure and differentiable in theta.
  """

  init: Callable[[jax.Array, Params], Theta]
  merge: Callable[[Theta, Params], Params]


def whole() -> Trainable:
  """All parameters."""
  return part()


def part(*path: str) -> Trainable:
  """The subtree at `path`, such as `part("unet")` or `part("unet", "mid_block")`.

  Raises:
    ConfigError: by `init` and `merge`, where the parameters have no such part.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # Nothing is drawn.
    return jax.tree.map(_master, _at(params, path))

  def merge(theta: Theta, params: Params) -> Params:
    _at(params, path)
    return _replaced(params, path, theta)

  return Trainable(init, merge)


def denoiser() -> Trainable:
  """The U-Net of a latent model; all parameters of a pixel model, which has no other part.

  A latent model's denoising loss must not train its VAE, which could shrink the latents to nothing.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    return (part(_UNET) if _has_parts(params) else whole()).init(key, params)

  def merge(theta: Theta, params: Params | None) -> Params:
    return {**params, _UNET: theta} if params is not None and _has_parts(params) else theta

  return Trainable(init, merge)


def by_name(name: str, *, rank: int = 4) -> Trainable:
  """What a config calls "denoiser", "lora" (of `rank`) or "cross_attention".

  Raises:
    ConfigError: another name.
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
  """Keys and values of the U-Net's cross-attention (attn2), as in Custom Diffusion.

  Kumari et al., arXiv:2212.04488, section 3: the only weights that see the text.

  Raises:
    ConfigError: by `init`, where the parameters have none.
  """

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # Nothing is drawn.
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
  """Low-rank updates of the U-Net's dense and convolution kernels (Hu et al., arXiv:2106.09685).

  theta holds lora_A and lora_B for every module named in `targets`; merge makes
  kernel + scale * lora_A @ lora_B. lora_B starts at zero: nothing changes before the first step.

  Args:
    rank: of the updates, at least 1.
    scale: of the updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules, such as "to_q"; the default is that of diffusers'
      training scripts.
    text_encoder_targets: of the text encoder's, such as `lora.TEXT_ENCODER_TARGETS`; empty leaves
      it as it is.

  Raises:
    ConfigError: a rank below 1, no targets, or (by `init`) a target that the model does not have.
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
  """Rows of the text encoder's token embedding (textual inversion, Gal et al., arXiv:2208.01618).

  theta is (N, D). Ids that lie behind the table's end extend it (they must then be the next ones,
  as `Tokenizer.add_token` gives them).

  Args:
    token_ids: the N tokens that are learned, from the tokenizer.
    init_from: tokens whose rows theta starts from: N of them, or one for all.

  Raises:
    ConfigError: no token, numbers that do not fit, or (by `init` and `merge`) ids that leave a gap.
  """
  ids = tuple(int(i) for i in token_ids)
  starts = (init_from,) * len(ids) if isinstance(init_from, int) else tuple(init_from)
  starts = starts * len(ids) if len(starts) == 1 else starts
  if not ids or len(set(ids)) != len(ids) or len(starts) != len(ids):
    raise ConfigError(
      f"learning tokens {ids} from the rows of {starts}: each needs one row to start from"
    )

  def init(key: jax.Array, params: Params) -> Theta:
    del key  # Nothing is drawn.
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
    # Float32 where theta is: a frozen table in bfloat16 would swallow small steps.
    table = table.astype(jnp.promote_types(table.dtype, theta.dtype))
    return _replaced(params, TOKEN_EMBEDDING, table.at[jnp.asarray(ids)].set(theta))

  return Trainable(init, merge)


def token_table(params: Params) -> jax.Array:
  """The text encoder's token embeddings (V, D), inside its parameters."""
  return _at(params, TOKEN_EMBEDDING)


def joined(*parts: Trainable) -> Trainable:
  """Several at once: theta is the tuple of theirs. Later ones win where they overlap."""

  def init(key: jax.Array, params: Params) -> Theta:
    keys = jax.random.split(key, len(parts))
    return tuple(one.init(k, params) for one, k in zip(parts, keys, strict=True))

  def merge(theta: Theta, params: Params) -> Params:
    for one, its in zip(parts, theta, strict=True):
      params = one.merge(its, params)
    return params

  return Trainable(init, merge)


def _master(leaf: Any) -> Any:
  """A float32 copy, which a caller may donate while the parameters live on."""
  wide = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape, wide)
  return jnp.array(leaf, wide, copy=True)


def _has_parts(params: Params) -> bool:
  return isinstance(params, dict) and _UNET in params


def _at(params: Params, path: Sequence[str]) -> Any:
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
  """The leaves whose path is wanted, in their nested places."""
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
  """`params` with the leaves of a tree that has some of its branches."""
  if not isinstance(theta, dict):
    return theta
  return {**params, **{name: _overlaid(value, params[name]) for name, value in theta.items()}}
