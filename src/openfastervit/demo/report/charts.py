"""Line charts as inline SVG. Colours come from the page's style sheet, so that they follow its dark mode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 44


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = field(default=())
    """Low and high at each point, drawn as bars; or none."""
    marked: bool = False
    """Draw a mark at each point."""


@dataclass(frozen=True)
class Axis:
    """One axis of a chart."""

    label: str
    ticks: Sequence[float]
    """The outermost ones are the ends of the axis unless data lies beyond."""
    write: Callable[[float], str]
    log: bool = False


def line_chart(
    name: str, title: str, description: str, series: Sequence[Series], x: Axis, y: Axis, level: float | None = None
) -> str:
    """A chart of up to two series: the first solid with round marks, the second dashed with square ones.

    Args:
        name: Unique on the page; letters and digits.
        title: Read out for the chart.
        description: What is to be seen, read out after the title.
        series: The lines.
        x: The horizontal axis.
        y: The vertical axis.
        level: A value to draw a thin line at.
    """
    place_x = _scale(x, [p[0] for s in series for p in s.points], LEFT, WIDTH - RIGHT)
    heights = [p[1] for s in series for p in s.points] + [v for s in series for r in s.ranges for v in r]
    place_y = _scale(y, heights, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>',
    ]
    for tick in y.ticks:
        at = place_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(y.write(tick))}</text>'
        )
    below = HEIGHT - BOTTOM + 18
    for tick in x.ticks:
        text = escape(x.write(tick))
        parts.append(f'<text class="tick" x="{place_x(tick):.1f}" y="{below}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    if level is not None:
        at = place_y(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for number, line in enumerate(series):
        parts += _line(line, f"s{number}", square=number > 0, place_x=place_x, place_y=place_y, x=x, y=y)
    return "".join([*parts, "</svg>"])


def _line(
    line: Series,
    kind: str,
    *,
    square: bool,
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    x: Axis,
    y: Axis,
) -> list[str]:
    places = [(place_x(a), place_y(b)) for a, b in line.points]
    path = " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(places))
    parts = [f'<path class="line {kind}" d="{path}"/>']
    for (a, _), (low, high) in zip(places, line.ranges, strict=False):
        parts.append(f'<path class="range {kind}" d="M{a:.1f} {place_y(low):.1f}V{place_y(high):.1f}"/>')
    if line.marked or len(places) == 1:
        for (a, b), point in zip(places, line.points, strict=True):
            tip = f"<title>{escape(f'{line.name}: {y.write(point[1])} at {x.write(point[0])}')}</title>"
            if square:
                parts.append(
                    f'<rect class="mark {kind}" x="{a - 4:.1f}" y="{b - 4:.1f}" width="8" height="8">{tip}</rect>'
                )
            else:
                parts.append(f'<circle class="mark {kind}" cx="{a:.1f}" cy="{b:.1f}" r="4.5">{tip}</circle>')
    return parts


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Where a value of the axis is drawn."""
    turn = math.log if axis.log else float
    low, high = (turn(end([*values, *axis.ticks])) for end in (min, max))
    span = high - low or 1.0
    return lambda value: start + (turn(value) - low) / span * (end - start)


def key(names: Sequence[str]) -> str:
    """What the lines of a chart are, with the same strokes and marks."""
    marks = (
        '<circle class="mark s0" cx="17" cy="6" r="4.5"/>',
        '<rect class="mark s1" x="13" y="2" width="8" height="8"/>',
    )
    items = "".join(
        f'<li><svg viewBox="0 0 34 12" aria-hidden="true"><path class="s{i}" d="M1 6H33"/>{marks[i]}</svg>'
        f"{escape(name)}</li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="key">{items}</ul>'


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from at or below ``low`` to at or above ``high``; about ``most`` of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    while span / step > most - 1:
        step *= 2.5 if f"{step:e}".startswith("2") else 2  # 1, 2, 5, 10, ...
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5 times a power of ten, from at or below ``low`` to at or above ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    inner = [tick for tick in ticks if low <= tick <= high]
    below, above = [t for t in ticks if t < low][-1:], [t for t in ticks if t > high][:1]
    return below + inner + above


def whole_ticks(last: int) -> list[float]:
    """Whole numbers from 1 to ``last``: both, and up to about six round ones between."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, last) if last / step <= 6)
    inner = [n for n in range(step, last, step) if n > 1 and last - n > step / 2]
    return [float(n) for n in sorted({1, *inner, last})]
