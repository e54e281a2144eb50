"""Names and shapes of Stable Diffusion's tensors in the code of its first authors.

Written as that code builds its networks, block after block, so that tests of `single_file` do not
share its rules: CompVis' U-Net and autoencoder, OpenAI's CLIP in transformers, and OpenCLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Shapes = dict[str, tuple[int, ...]]

# The published sizes, and small ones with the same rules for heads and groups.
UNETS: dict[str, dict[str, Any]] = {
  "sd1": {"channels": 320, "mult": (1, 2, 4, 4), "layers": 2, "depths": (1, 1, 1, 0), "text": 768},
  "sd2": {"channels": 320, "mult": (1, 2, 4, 4), "layers": 2, "depths": (1, 1, 1, 0), "text": 1024},
  "sdxl": {"channels": 320, "mult": (1, 2, 4), "layers": 2, "depths": (0, 2, 10), "text": 2048},
  "small_sd1": {"channels": 32, "mult": (1, 2), "layers": 1, "depths": (1, 0), "text": 64},
  "small_sd2": {"channels": 64, "mult": (1, 2, 2), "layers": 2, "depths": (1, 1, 0), "text": 64},
  "small_sdxl": {"channels": 64, "mult": (1, 2, 2), "layers": 2, "depths": (0, 1, 3), "text": 192},
}
for _name, _unet in UNETS.items():
  _unet["linear"] = not _name.endswith("sd1")
  _unet["added"] = {"sdxl": 2816, "small_sdxl": 128 + 6 * 256}.get(_name)
VAE = {"channels": 128, "mult": (1, 2, 4, 4), "layers": 2}
SMALL_VAE = {"channels": 32, "mult": (1, 2), "layers": 1}
# Width, layers, positions, vocabulary, projection.
TEXTS: dict[str, tuple[int, int, int, int]] = {
  "clip": (768, 12, 49408, 768),
  "openclip_h": (1024, 24, 49408, 1024),
  "openclip_g": (1280, 32, 49408, 1280),
  "small": (64, 2, 49408, 64),
  "small_2": (128, 3, 49408, 128),
}


class _Names:
  def __init__(self) -> None:
    self.shapes: Shapes = {}

  def conv(self, name: str, inputs: int, outputs: int, size: int = 3) -> None:
    self.shapes[f"{name}.weight"] = (outputs, inputs, size, size)
    self.shapes[f"{name}.bias"] = (outputs,)

  def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
    self.shapes[f"{name}.weight"] = (outputs, inputs)
    if bias:
      self.shapes[f"{name}.bias"] = (outputs,)

  def norm(self, name: str, channels: int) -> None:
    self.shapes[f"{name}.weight"] = self.shapes[f"{name}.bias"] = (channels,)


def unet(kind: str, in_channels: int = 4) -> Shapes:
  """The U-Net of `UNETS`."""
  c, names = UNETS[kind], _Names()
  width, mult, layers, depths = c["channels"], c["mult"], c["layers"], c["depths"]
  time = 4 * width

  def resnet(name: str, inputs: int, outputs: int) -> None:
    names.norm(f"{name}.in_layers.0", inputs)
    names.conv(f"{name}.in_layers.2", inputs, outputs)
    names.linear(f"{name}.emb_layers.1", time, outputs)
    names.norm(f"{name}.out_layers.0", outputs)
    names.conv(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
      names.conv(f"{name}.skip_connection", inputs, outputs, 1)

  def transformer(name: str, channels: int, depth: int) -> None:
    def project(name: str) -> None:
      if c["linear"]:
        names.linear(name, channels, channels)
      else:
        names.conv(name, channels, channels, 1)

    names.norm(f"{name}.norm", channels)
    project(f"{name}.proj_in")
    for number in range(depth):
      block = f"{name}.transformer_blocks.{number}"
      for attention, source in (("attn1", channels), ("attn2", c["text"])):
        names.linear(f"{block}.{attention}.to_q", channels, channels, bias=False)
        names.linear(f"{block}.{attention}.to_k", source, channels, bias=False)
        names.linear(f"{block}.{attention}.to_v", source, channels, bias=False)
        names.linear(f"{block}.{attention}.to_out.0", channels, channels)
      names.linear(f"{block}.ff.net.0.proj", channels, 8 * channels)
      names.linear(f"{block}.ff.net.2", 4 * channels, channels)
      for norm in ("norm1", "norm2", "norm3"):
        names.norm(f"{block}.{norm}", channels)
    project(f"{name}.proj_out")

  names.linear("time_embed.0", width, time)
  names.linear("time_embed.2", time, time)
  if c["added"]:
    names.linear("label_emb.0.0", c["added"], time)
    names.linear("label_emb.0.2", time, time)
  names.conv("input_blocks.0.0", in_channels, width)
  number, channels, skips = 1, width, [width]
  for level, factor in enumerate(mult):
    for _ in range(layers):
      resnet(f"input_blocks.{number}.0", channels, factor * width)
      channels = factor * width
      if depths[level]:
        transformer(f"input_blocks.{number}.1", channels, depths[level])
      skips.append(channels)
      number += 1
    if level < len(mult) - 1:
      names.conv(f"input_blocks.{number}.0.op", channels, channels)
      skips.append(channels)
      number += 1
  resnet("middle_block.0", channels, channels)
  transformer("middle_block.1", channels, depths[-1] or 1)
  resnet("middle_block.2", channels, channels)
  number = 0
  for level, factor in reversed(list(enumerate(mult))):
    for layer in range(layers + 1):
      resnet(f"output_blocks.{number}.0", channels + skips.pop(), factor * width)
      channels = factor * width
      if depths[level]:
        transformer(f"output_blocks.{number}.1", channels, depths[level])
      if level and layer == layers:
        names.conv(f"output_blocks.{number}.{2 if depths[level] else 1}.conv", channels, channels)
      number += 1
  names.norm("out.0", channels)
  names.conv("out.2", channels, 4)
  return names.shapes


def vae(small: bool = False, latents: int = 4) -> Shapes:
  """The autoencoder."""
  c, names = SMALL_VAE if small else VAE, _Names()
  width: int = c["channels"]  # type: ignore[assignment]
  layers: int = c["layers"]  # type: ignore[assignment]
  mult: Sequence[int] = c["mult"]  # type: ignore[assignment]

  def resnet(name: str, inputs: int, outputs: int) -> None:
    names.norm(f"{name}.norm1", inputs)
    names.conv(f"{name}.conv1", inputs, outputs)
    names.norm(f"{name}.norm2", outputs)
    names.conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
      names.conv(f"{name}.nin_shortcut", inputs, outputs, 1)

  def middle(name: str, channels: int) -> None:
    resnet(f"{name}.mid.block_1", channels, channels)
    names.norm(f"{name}.mid.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
      names.conv(f"{name}.mid.attn_1.{part}", channels, channels, 1)
    resnet(f"{name}.mid.block_2", channels, channels)

  names.conv("encoder.conv_in", 3, width)
  channels = width
  for level, factor in enumerate(mult):
    for layer in range(layers):
      resnet(f"encoder.down.{level}.block.{layer}", channels, factor * width)
      channels = factor * width
    if level < len(mult) - 1:
      names.conv(f"encoder.down.{level}.downsample.conv", channels, channels)
  middle("encoder", channels)
  names.norm("encoder.norm_out", channels)
  names.conv("encoder.conv_out", channels, 2 * latents)
  names.conv("decoder.conv_in", latents, channels)
  middle("decoder", channels)
  for level, factor in reversed(list(enumerate(mult))):
    for layer in range(layers + 1):
      resnet(f"decoder.up.{level}.block.{layer}", channels, factor * width)
      channels = factor * width
    if level:
      names.conv(f"decoder.up.{level}.upsample.conv", channels, channels)
  names.norm("decoder.norm_out", channels)
  names.conv("decoder.conv_out", channels, 3)
  names.conv("quant_conv", 2 * latents, 2 * latents, 1)
  names.conv("post_quant_conv", latents, latents, 1)
  return names.shapes


def clip(kind: str) -> Shapes:
  """A text encoder in transformers' names."""
  width, layers, vocab, _ = TEXTS[kind]
  names = _Names()
  names.shapes["text_model.embeddings.token_embedding.weight"] = (vocab, width)
  names.shapes["text_model.embeddings.position_embedding.weight"] = (77, width)
  for number in range(layers):
    layer = f"text_model.encoder.layers.{number}"
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
      names.linear(f"{layer}.self_attn.{part}", width, width)
    names.norm(f"{layer}.layer_norm1", width)
    names.norm(f"{layer}.layer_norm2", width)
    names.linear(f"{layer}.mlp.fc1", width, 4 * width)
    names.linear(f"{layer}.mlp.fc2", 4 * width, width)
  names.norm("text_model.final_layer_norm", width)
  return names.shapes


def openclip(kind: str) -> Shapes:
  """A text encoder in OpenCLIP's names."""
  width, layers, vocab, projection = TEXTS[kind]
  names = _Names()
  names.shapes["positional_embedding"] = (77, width)
  names.shapes["text_projection"] = (width, projection)
  names.shapes["logit_scale"] = ()
  names.shapes["token_embedding.weight"] = (vocab, width)
  for number in range(layers):
    block = f"transformer.resblocks.{number}"
    names.norm(f"{block}.ln_1", width)
    names.norm(f"{block}.ln_2", width)
    names.shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
    names.shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
    names.linear(f"{block}.attn.out_proj", width, width)
    names.linear(f"{block}.mlp.c_fc", width, 4 * width)
    names.linear(f"{block}.mlp.c_proj", 4 * width, width)
  names.norm("ln_final", width)
  return names.shapes


def checkpoint(kind: str, *, small: bool = True, in_channels: int = 4) -> Shapes:
  """A whole file: "sd1", "sd2" or "sdxl"."""
  made = {
    "model.diffusion_model.": unet(f"small_{kind}" if small else kind, in_channels),
    "first_stage_model.": vae(small),
  }
  if kind == "sd1":
    made["cond_stage_model.transformer."] = clip("small" if small else "clip")
  elif kind == "sd2":
    made["cond_stage_model.model."] = openclip("small" if small else "openclip_h")
  else:
    made["conditioner.embedders.0.transformer."] = clip("small" if small else "clip")
    made["conditioner.embedders.1.model."] = openclip("small_2" if small else "openclip_g")
  return {prefix + name: shape for prefix, part in made.items() for name, shape in part.items()}
