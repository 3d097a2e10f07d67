"""The two charts, as Plotly takes them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from openfastervit.benchmarking.cases import Key, Row
from openfastervit.benchmarking.pareto import front
from openfastervit.benchmarking.published import paper_speeds

OURS, PEERS, LINE = "#e8590c", "#3b82d0", "#8a94a3"
"""Readable on white and on black."""


_ALL_NAMED = 8
"""Networks that all have their names in the chart; of more, those on the front and our own."""
_LEAST_SPAN = 2.0
"""Points of top-1 that the axis spans at least: hundredths should not look like a landslide."""


def groups(best: Sequence[Row]) -> list[tuple[str, int]]:
    """Precisions and batches that something was measured at, in their order."""
    return list(dict.fromkeys((row.precision, row.batch_size) for row in best))


def group_name(precision: str, batch_size: int) -> str:
    """Such as ``"fp32, batch 8"``."""
    return f"{precision}, batch {batch_size}"


def measured_chart(rows: Sequence[Row], best: Sequence[Row], precision: str, batch_size: int) -> dict[str, Any]:
    """Traces and layout for one precision and batch.

    Args:
        rows: All rows.
        best: Those of each network's fastest engine, judged.
        precision: Of the chart.
        batch_size: Of the chart.
    """

    def here(some: Sequence[Row]) -> list[Row]:
        return [
            row
            for row in some
            if (row.precision, row.batch_size) == (precision, batch_size) and row.measured and row.top1_published
        ]

    shown = here(best)
    compared = [row for row in shown if row.comparable and row.top1_data == "ImageNet-1K"]
    apart = [row for row in shown if row not in compared]
    keys = {row.key for row in shown}
    slower = [row for row in here(rows) if row.key not in keys]
    on_front = [compared[i] for i in front([_point(row) for row in compared])]
    usual = statistics.mode(row.height for row in compared) if compared else 0
    traces = [_front_line([_point(row) for row in on_front])]
    if slower:
        traces.append(_points("other engines", slower, LINE, {}, size=5))
    for name, peer, colour in (("peers", True, PEERS), ("FasterViT", False, OURS)):
        few = len(compared) <= _ALL_NAMED
        named = [row for row in compared if few or row in on_front or not row.peer]
        labels = {row.key: _label(row.model) + (f"@{row.height}" if row.height != usual else "") for row in named}
        own = [row for row in compared if row.peer == peer]
        traces.append(_points(name, own, colour, labels, size=11, bars=True))
        own = [row for row in apart if row.peer == peer]
        traces.append(_points(f"{name}, not compared", own, colour, {}, size=9, symbol="circle-open"))
    speeds = [row.images_per_second or 0.0 for row in [*shown, *slower]]
    accuracies = [row.top1_published or 0.0 for row in [*shown, *slower]]
    return {
        "data": traces,
        "layout": _layout("images a second, measured here", "top-1, published (%)", speeds, accuracies),
    }


def paper_chart() -> dict[str, Any]:
    """Traces and layout of the paper's figures."""
    speeds = paper_speeds()
    points = [(speed.images_per_second, speed.top1) for speed in speeds]
    kept = front(points)
    traces = [_front_line([points[i] for i in kept])]
    for name, ours, colour in (("peers", False, PEERS), ("FasterViT", True, OURS)):
        own = [(i, speed) for i, speed in enumerate(speeds) if speed.model.startswith("FasterViT") == ours]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "x": [speed.images_per_second for _, speed in own],
                "y": [speed.top1 for _, speed in own],
                "text": [_label(speed.model) if ours or i in kept else "" for i, speed in own],
                "textposition": "top center" if ours else "top right",
                "marker": {"color": colour, "size": 10},
                "hovertext": [
                    f"<b>{escape(speed.model)}</b><br>{speed.images_per_second:,.0f} images/s on an A100, batch 128"
                    f"<br>top-1 {speed.top1:.1f} %<br>the paper's figures, not measured here"
                    for _, speed in own
                ],
                "hoverinfo": "text",
            }
        )
    layout = _layout("images a second, the paper's A100", "top-1, the paper's (%)", *zip(*points, strict=True))
    return {"data": traces, "layout": layout}


def _points(
    name: str,
    rows: Sequence[Row],
    colour: str,
    labels: Mapping[Key, str],
    *,
    size: int,
    bars: bool = False,
    symbol: str = "circle",
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [row.images_per_second for row in rows],
        "y": [row.top1_published for row in rows],
        "text": [labels.get(row.key, "") for row in rows],
        "textposition": "top right" if rows and rows[0].peer else "top center",
        "marker": {"color": colour, "size": size, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "hovertext": [_hover(row) for row in rows],
        "hoverinfo": "text",
        "cliponaxis": False,
    }
    if bars:
        high = [(row.images_per_second_q3 or 0) - (row.images_per_second or 0) for row in rows]
        low = [(row.images_per_second or 0) - (row.images_per_second_q1 or 0) for row in rows]
        trace["error_x"] = {"type": "data", "array": high, "arrayminus": low, "color": colour, "thickness": 1}
    return trace


def _hover(row: Row) -> str:
    lines = [
        f"<b>{escape(row.model)}</b> at {row.height} x {row.width}",
        f"{row.engine}, {row.precision}, batch {row.batch_size}",
        f"{row.images_per_second:,.4g} images/s ({row.images_per_second_q1:,.4g} to {row.images_per_second_q3:,.4g})",
        f"{row.latency_ms_p50:,.4g} ms a call",
        f"top-1 {row.top1_published:.1f} %, published at {row.top1_size} ({escape(row.top1_weights)})",
    ]
    if row.peak_memory_mb is not None:
        lines.append(f"{row.peak_memory_mb:,.0f} MB at most")
    if row.top1_data != "ImageNet-1K":
        lines.append(f"learned from {escape(row.top1_data)}: not compared")
    elif not row.comparable:
        lines.append("published at another size: not compared")
    names = row.not_faster_than.split()
    if names:
        lines.append("not faster than " + ", ".join(escape(name) for name in names[:4]))
        if len(names) > 4:
            lines.append(f"and {len(names) - 4} more of equal or better top-1")
    return "<br>".join(lines)


def _label(model: str) -> str:
    return escape(model.replace("fastervit_", "").replace("FasterViT-", ""))


def _point(row: Row) -> tuple[float, float]:
    return row.images_per_second or 0.0, row.top1_published or 0.0


def _front_line(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Down at each point, then on to the next: what is reached at that speed or more."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "line": {"color": LINE, "width": 2, "shape": "vh", "dash": "dot"},
        "hoverinfo": "skip",
    }


def _ticks(values: Sequence[float]) -> list[float]:
    """Numbers of one digit and zeros, around the values; of a wide range those of 1, 2 and 5 alone."""
    if not values:
        return []
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    digits = (1, 2, 5) if max(values) > 8 * min(values) else range(1, 10)
    ticks = [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]
    first = max(i for i, tick in enumerate(ticks) if tick <= min(values))
    last = min(i for i, tick in enumerate(ticks) if tick >= max(values))
    return ticks[first : last + 1]


def _layout(x: str, y: str, speeds: Sequence[float], accuracies: Sequence[float]) -> dict[str, Any]:
    """Of both charts.

    Args:
        x: Title of the axis of speed.
        y: Title of the axis of accuracy.
        speeds: What the axis of speed shows.
        accuracies: What the axis of accuracy shows.
    """
    low, high = min(accuracies, default=0.0), max(accuracies, default=100.0)
    around = max((_LEAST_SPAN - (high - low)) / 2, 0.08 * (high - low))
    slowest, fastest = math.log10(min(speeds, default=1.0)), math.log10(max(speeds, default=10.0))
    aside = max(0.06 * (fastest - slowest), 0.03)
    ticks = _ticks(speeds)
    axis = {"zeroline": False, "showline": True, "linecolor": LINE, "gridcolor": "rgba(138,148,163,.25)"}
    return {
        "xaxis": {
            **axis,
            "type": "log",
            "range": [slowest - aside, fastest + 3 * aside],  # names stand to the right of their points
            "title": {"text": x, "standoff": 10},
            "tickvals": ticks,
            "ticktext": [f"{tick:,g}" for tick in ticks],
            "tickangle": 0,
        },
        "yaxis": {
            **axis,
            "title": {"text": y, "standoff": 8},
            "ticksuffix": " ",
            "automargin": True,
            "range": [low - around, high + around],
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": LINE},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 52},
        "showlegend": False,
        "hoverlabel": {"bgcolor": "#1b2430", "bordercolor": "#1b2430", "font": {"color": "#ffffff", "size": 13}},
        "hovermode": "closest",
        "dragmode": False,
        "autosize": True,
    }
