"""Line charts as inline SVG, for pages that must stand alone.

Colours and fonts are left to the page's style sheet (classes, not
attributes), so that one drawing serves light and dark and print. Read `Panel`
first, then `stacked_panels`.

>>> panel = Panel(title="Test accuracy", steps=[0, 1], values=[0.1, 0.9])
>>> svg = stacked_panels([panel], width=360, x_label="step")
>>> svg.startswith("<svg"), "Test accuracy" in svg
(True, True)
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

import numpy as np

# Pixels of the drawing's own coordinates; the page scales it to its column.
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 56, 72, 32, 24, 30
_MAX_POINTS = 400  # more than a screen resolves
_MAX_DOTS = 40  # above it, dots hide the line


def _plain(value: float) -> str:
  return f"{value:,.10g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One curve over steps, with its own y-axis.

  Non-finite values are left out: a line passes over them.
  """

  title: str
  steps: Sequence[float]
  values: Sequence[float] | np.ndarray
  others: Sequence[
    Sequence[float] | np.ndarray
  ] = ()  # faint curves over the same steps
  tick: Callable[[float], str] = _plain  # text at the y-axis
  label: Callable[[float], str] = _plain  # text at the curve's end
  from_zero: bool = False
  reference: tuple[float, str] | None = None  # a dashed line and its name
  css_class: str = ""


def stacked_panels(
  panels: Sequence[Panel], *, width: int, x_label: str, height: int = 150
) -> str:
  """Panels above each other over one shared x-axis, as an ``<svg>`` element.

  Args:
    panels: at least one; a panel without finite values raises ValueError.
    width: of the drawing, in its own pixels: 360 for a phone, 820 for a page.
    x_label: name of the shared axis.
    height: of each panel's plotting area.
  """
  curves = [_finite_curve(panel, panel.values) for panel in panels]
  x_high = max(xs[-1] for xs, _ in curves)
  x_low = min(0.0, x_high - 1, *(xs[0] for xs, _ in curves))
  right = width - _RIGHT

  def x_at(x: float) -> float:
    return _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT)

  parts = []
  top = 0.0
  for panel, (xs, ys) in zip(panels, curves, strict=True):
    top += _TOP
    parts.append(f'<g class="{html.escape(panel.css_class)}">')
    parts += _panel(panel, xs, ys, x_at, top, height, right)
    parts.append("</g>")
    top += height + _GAP
  base = top - _GAP
  parts.append(_line(_LEFT, base, right, base, "axis"))
  x_step = _round_step((x_high - x_low) / max(2, width // 130))
  for tick in _multiples(x_step, x_low, x_high):
    x = x_at(tick)
    parts.append(_line(x, base, x, base + 4, "axis"))
    parts.append(_text(x, base + 18, _plain(tick), "tick middle"))
  parts.append(_text(width - 2, base + 18, x_label, "tick end"))
  described = "; ".join(
    f"{panel.title}: {panel.label(ys[-1])} at {x_label} {_plain(xs[-1])}"
    for panel, (xs, ys) in zip(panels, curves, strict=True)
  )
  return (
    f'<svg viewBox="0 0 {width} {base + _BOTTOM:g}" role="img" '
    f'aria-label="{html.escape(described)}">{"".join(parts)}</svg>'
  )


def _panel(
  panel: Panel,
  xs: np.ndarray,
  ys: np.ndarray,
  x_at: Callable[[float], float],
  top: float,
  height: float,
  right: float,
) -> list[str]:
  """Title, grid, reference, curve and the label at the curve's end."""
  faint = [_finite_curve(panel, values) for values in panel.others]
  shown = [*ys, *(panel.reference[:1] if panel.reference else ())]
  shown += [y for _, values in faint for y in values]
  y_low, y_high, ticks = _limits(min(shown), max(shown), panel.from_zero)

  def y_at(y: float) -> float:
    return top + (y_high - y) / (y_high - y_low) * height

  parts = [_text(_LEFT, top - 12, panel.title, "title")]
  for tick in ticks:
    parts.append(_line(_LEFT, y_at(tick), right, y_at(tick), "grid"))
    parts.append(_text(_LEFT - 8, y_at(tick) + 4, panel.tick(tick), "tick end"))
  if panel.reference:
    value, name = panel.reference
    parts.append(_line(_LEFT, y_at(value), right, y_at(value), "reference"))
    parts.append(_text(_LEFT + 6, y_at(value) + 16, name, "tick"))
  for css_class, curve in [*(("faint", f) for f in faint), ("curve", (xs, ys))]:
    points = [(x_at(x), y_at(y)) for x, y in zip(*curve, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="{css_class}" points="{path}"/>')
  dots = range(len(points)) if len(points) <= _MAX_DOTS else [len(points) - 1]
  for i in dots:
    x, y = points[i]
    tip = html.escape(f"{_plain(xs[i])}: {panel.label(ys[i])}")
    radius = 4 if i == len(points) - 1 else 2.5
    parts.append(
      f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
      f"<title>{tip}</title></circle>"
    )
  x, y = points[-1]
  parts.append(_text(x + 10, y + 5, panel.label(ys[-1]), "end-label"))
  return parts


def _finite_curve(
  panel: Panel, values: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The finite points of values, thinned to what a screen can show."""
  xs = np.asarray(panel.steps, float)
  ys = np.asarray(values, float)
  finite = np.isfinite(xs) & np.isfinite(ys)
  if not finite.any():
    raise ValueError(
      f"panel {panel.title!r} has no finite value among {len(ys)}; leave the "
      "panel out"
    )
  xs, ys = xs[finite], ys[finite]
  keep = np.linspace(0, len(xs) - 1, min(len(xs), _MAX_POINTS))
  keep = np.unique(keep.round().astype(int))
  return xs[keep], ys[keep]


def _limits(
  low: float, high: float, from_zero: bool
) -> tuple[float, float, list[float]]:
  """Axis limits at round numbers, with the ticks between them."""
  if from_zero:
    low, high = min(0.0, low), max(0.0, high)
  if high == low:
    pad = abs(high) / 2 or 1.0
    low, high = low - pad, high + pad
  step = _round_step((high - low) / 3)
  low, high = math.floor(low / step) * step, math.ceil(high / step) * step
  return low, high, _multiples(step, low, high)


def _multiples(step: float, low: float, high: float) -> list[float]:
  """All multiples of ``step`` in [low, high]."""
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [k * step for k in range(first, last + 1)]


def _round_step(step: float) -> float:
  """The smallest of 1, 2, 2.5, 5, 10 times a power of ten >= ``step``."""
  power = 10.0 ** math.floor(math.log10(step))
  return next(
    m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999
  )


def _line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> str:
  return (
    f'<line class="{css_class}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
    f'y2="{y2:.1f}"/>'
  )


def _text(x: float, y: float, text: str, css_class: str) -> str:
  return (
    f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}">'
    f"{html.escape(text)}</text>"
  )
