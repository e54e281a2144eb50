"""The report's figures as inline SVG: equal input gives equal bytes, and the page sets the colours.

Figures are drawn in placeholder colours that become CSS variables (`--s0`, `--s1`, ... for series,
`--grid`, `currentColor` for text), so that one SVG works on the light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from udp_jax.report import text

# Number of series colours in the style sheet: the first ones for controls, the others for methods.
NUM_CONTROL_COLORS = 6
NUM_METHOD_COLORS = 6

_TEXT, _GRID = "#fd0001", "#fd0002"
_DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1.5), (8, 2, 1.5, 2, 1.5, 2))
_STYLE: dict[Any, Any] = {
  "axes.edgecolor": _GRID,
  "axes.grid": True,
  "axes.labelcolor": _TEXT,
  "axes.labelsize": 10.0,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.sans-serif": ["DejaVu Sans"],
  "font.size": 10.0,
  "grid.color": _GRID,
  "grid.linewidth": 0.6,
  "svg.fonttype": "none",
  "svg.hashsalt": "udp_jax",
  "text.color": _TEXT,
  "text.parse_math": False,
  "xtick.color": _GRID,
  "xtick.labelcolor": _TEXT,
  "ytick.color": _GRID,
  "ytick.labelcolor": _TEXT,
}


class Series(NamedTuple):
  """The appearance of one training set in all figures of a report.

  Attributes:
    name: its key in the report.
    label: name shown to readers.
    control: whether it is a control rather than a method.
    color: number of the page's CSS variable `--s{color}`.
    dashes: on and off lengths in points, () for a solid line.
  """

  name: str
  label: str
  control: bool
  color: int
  dashes: tuple[float, ...]

  @property
  def placeholder(self) -> str:
    """The colour that the CSS variable replaces."""
    return f"#fe00{self.color:02x}"


def assign_series(
  rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()
) -> dict[str, Series]:
  """Assigns a colour and a line style to each row, and to each name in `names` without a row.

  Controls have muted colours and dashed lines, methods vivid colours and solid lines. After six of
  a kind, colours repeat with the next dash pattern.
  """
  known = {row["name"] for row in rows}
  entries = [(row["name"], str(row["label"]), bool(row.get("control", False))) for row in rows]
  entries += [(name, name, False) for name in dict.fromkeys(names) if name not in known]
  counts = {True: 0, False: 0}
  series = {}
  for name, label, control in entries:
    number = counts[control]
    counts[control] += 1
    if control:
      color, dash = number % NUM_CONTROL_COLORS, number + number // NUM_CONTROL_COLORS
    else:
      color, dash = NUM_CONTROL_COLORS + number % NUM_METHOD_COLORS, number // NUM_METHOD_COLORS
    series[name] = Series(name, label, control, color, _DASHES[dash % len(_DASHES)])
  return series


def victim_losses(
  curves: Mapping[str, Any], series: Mapping[str, Series], prefix: str
) -> tuple[str, float | None]:
  """Training loss of the trained models over steps: mean lines with a low-high band.

  Args:
    curves: for each training set "steps", "mean", and optionally "low" and "high".
    series: line styles by training set.
    prefix: put before every id inside the SVG; unique on the page.

  Returns:
    The SVG, and the loss above which the steep start is cut off (None if all of it is shown).
  """
  drawn = {name: _columns(curves[name], ("steps", "mean", "low", "high")) for name in curves}
  with new_axes("training step", "training loss") as (figure, axes):
    for name, (steps, mean, low, high) in drawn.items():
      style = series[name]
      if low.size and high.size:
        axes.fill_between(steps, low, high, color=style.placeholder, alpha=0.16, linewidth=0)
      _line(axes, steps, mean, style)
    # Losses fall from one to a tenth within the first steps; a full y axis would hide the later
    # differences.
    late, overall = [], []
    for steps, mean, low, high in drawn.values():
      for values in (mean, low, high):
        if values.size and np.isfinite(values).any():
          overall.append(values[np.isfinite(values)])
          kept = values[(steps >= 0.1 * steps[-1]) & np.isfinite(values)]
          late.append(kept if kept.size else overall[-1])
    cut = None
    if overall:
      bottom, top = min(v.min() for v in late), max(v.max() for v in late)
      margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 0.05
      axes.set_ylim(bottom - margin, top + margin)
      if max(v.max() for v in overall) > top + margin:
        cut = float(top + margin)
    return to_svg(figure, prefix, "Training loss of each trained model against training steps"), cut


def protection_losses(
  curves: Mapping[str, Any], key: str, series: Mapping[str, Series], prefix: str
) -> str:
  """Plots one loss of each protection, "min_loss" or "max_loss", over rounds."""
  with new_axes("round", "loss") as (figure, axes):
    for name, curve in curves.items():
      rounds, loss = _columns(curve, ("round", key))
      _line(axes, rounds, loss, series[name])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return to_svg(figure, prefix, f"{key.replace('_', ' ')} against rounds, per protection")


def timestep_distributions(
  timesteps: Mapping[str, Sequence[float]], series: Mapping[str, Series], prefix: str
) -> str:
  """Plots the probability of each timestep relative to the uniform distribution."""
  with new_axes(
    "timestep t  (left: hardly any noise, right: only noise)", "times uniform"
  ) as parts:
    figure, axes = parts
    for name, probs in timesteps.items():
      times_uniform = np.asarray(probs, np.float64) * len(probs)
      steps = np.arange(len(probs))
      _line(axes, steps, times_uniform, series[name])
    axes.set_ylim(bottom=0)
    return to_svg(figure, prefix, "Probability of each timestep, per protection")


def usefulness(record: Mapping[str, Any]) -> str:
  """Plots the measured usefulness of timesteps with standard errors, as a file of its own."""
  steps, values, errors = (
    np.asarray(record[name], np.float64) for name in ("timesteps", "usefulness", "se")
  )
  style = Series("usefulness", "usefulness", False, 0, ())
  with new_axes("timestep t  (left: hardly any noise)", "ascent per unit step") as parts:
    figure, axes = parts
    axes.fill_between(
      steps, values - errors, values + errors, color=style.placeholder, alpha=0.25, lw=0
    )
    _line(axes, steps, values, style)
    svg = to_svg(figure, "usefulness", f"Usefulness of timesteps against {record['model']}")
  links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  colours = 'style="--s0: #2166ac; --grid: #d0d4da; color: #1b1f24; background: #fff"'
  return re.sub(r'\sxmlns:xlink="[^"]*"', "", svg).replace("<svg", f"<svg {links} {colours}", 1)


def metric_dots(
  column: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  series: Mapping[str, Series],
  prefix: str,
) -> str | None:
  """One metric for all rows: a dot per mean, a bar of one std, faint dots for single values.

  Returns:
    The SVG, or None if fewer than two rows have the metric.
  """
  shown = []
  for row in rows:
    mean, std, values = text.metric_values(row, column["key"])
    if mean is not None:
      shown.append((row, mean, std, values))
  if len(shown) < 2:
    return None
  with new_axes("", "", size=(4.1, 0.62 + 0.25 * len(shown))) as (figure, axes):
    for y, (row, mean, std, values) in enumerate(shown):
      color = series[row["name"]].placeholder
      axes.plot(values, [y] * len(values), "o", color=color, alpha=0.35, ms=4, mew=0)
      if std is not None:
        axes.plot([mean - std, mean + std], [y, y], "-", color=color, lw=2)
      axes.plot([mean], [y], "o", color=color, ms=7.5, mew=0)
    labels = [_shorten(series[row["name"]].label) for row, *_ in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.margins(x=0.08)
    return to_svg(figure, prefix, f"{column['label']} for each training set")


def pareto(
  points: Sequence[tuple[str, float, float]],
  series: Mapping[str, Series],
  prefix: str,
  *,
  xlabel: str,
  ylabel: str,
) -> str:
  """Plots the visibility of each protection and the effect that survives, with the Pareto front.

  Args:
    points: (name, x, y); a smaller x and a larger y are better.
    series: colours by name.
    prefix: put before every id inside the SVG; unique on the page.
    xlabel: label of the x axis.
    ylabel: label of the y axis.
  """
  with new_axes(xlabel, ylabel, size=(5.4, 3.9)) as (figure, axes):
    front = pareto_front(points)
    if len(front) > 1:
      axes.step(*zip(*[(x, y) for _, x, y in front]), where="post", color=_GRID, lw=1.5, zorder=1)
    for name, x, y in points:
      style = series[name]
      face = "none" if style.control else style.placeholder
      axes.plot([x], [y], "o", color=style.placeholder, mfc=face, ms=7.5, mew=1.6)
    axes.margins(x=0.08, y=0.1)
    low, high = axes.get_ylim()
    # Separate the names of points at the same height.
    taken: list[float] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
      place = max(y, taken[-1] + 0.055 * (high - low)) if taken else y
      taken.append(place)
      left, right = axes.get_xlim()
      side = -1 if x > 0.6 * right + 0.4 * left else 1
      axes.annotate(
        _shorten(series[name].label, 32),
        (x, place),
        xytext=(7 * side, -3),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        fontsize=8.5,
      )
    return to_svg(figure, prefix, f"{ylabel} against {xlabel}, a point a protection")


def pareto_front(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
  """Returns the points that no other beats in both (smaller x, larger y), sorted by x."""
  front: list[tuple[str, float, float]] = []
  for point in sorted(points, key=lambda point: (point[1], -point[2])):
    if not front or point[2] > front[-1][2]:
      front.append(point)
  return front


def _columns(curve: Mapping[str, Any], keys: Sequence[str]) -> list[np.ndarray]:
  """Returns the lists of a curve as float arrays, with NaN for None; missing lists are empty."""
  return [np.array(curve[key] if curve.get(key) is not None else [], np.float64) for key in keys]


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, style: Series) -> None:
  line = (0, style.dashes) if style.dashes else "solid"
  # A curve of one point has no visible line.
  marker = "o" if len(x) == 1 else ""
  axes.plot(x, y, color=style.placeholder, linestyle=line, lw=1.4 if style.control else 2.0,
            marker=marker)  # fmt: skip


def _shorten(label: str, limit: int = 28) -> str:
  return label if len(label) <= limit else label[: limit - 1] + "…"


@contextmanager
def new_axes(
  xlabel: str, ylabel: str, *, size: tuple[float, float] = (4.8, 2.9)
) -> Iterator[tuple[Figure, Axes]]:
  """Yields a figure with one pair of axes in our style, independent of the user's matplotlibrc."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    yield figure, axes


def to_svg(figure: Figure, prefix: str, description: str) -> str:
  """Returns the figure as an `<svg>` element for a shared page: own ids, no size, no metadata."""
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :].strip()
  # A style element would affect the whole page, and six decimals per point would double the size.
  svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
  svg = re.sub(r'(?<=\sd=")[^"]*', _round_coordinates, svg)
  svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
  svg = re.sub(r": #fe00([0-9a-f]{2})", lambda match: f": var(--s{int(match[1], 16)})", svg)
  svg = svg.replace(f": {_TEXT}", ": currentColor").replace(f": {_GRID}", ": var(--grid)")
  head = re.sub(r'\s(?:width|height|version|xmlns)="[^"]*"', "", svg[: svg.index(">")])
  label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
  return f'{head} role="img" aria-label="{label}"{svg[svg.index(">") :]}'


def _round_coordinates(path: re.Match[str]) -> str:
  return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path[0])
